//! Linear layers side by side, each of which takes rows of its own, as experts do
//! (arXiv:1701.06538), with low-rank adapters. For the rows of expert `e`:
//! `y = x·W_eᵀ + Σ s·(x·A_eᵀ)·B_eᵀ`; with `h = s·x·A_eᵀ` and `dh = s·dy·B_e`:
//! `dx = dy·W_e + Σ dh·A_e`, `dA_e = dhᵀ·x`, `dB_e = dyᵀ·h`, `dW_e = dyᵀ·x`.
//!
//! Rows come sorted by expert, and an expert without rows costs nothing. As in `linear`, `x` is
//! saved only if a matrix or an `A` trains, and `h` only if its `B` does.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Tensor};
use half::bf16;

use crate::{
    Error, Result, Value, Weight, composed,
    elements::Elements,
    kept::Kept,
    kernels::{
        Computed, F32, Floats,
        buffer::{filled, filled_parts},
        check_dims, dims2,
        product::{self, Linear, Room, Target, Term, View, product_parallel},
        tensor,
    },
    profile,
};

const OP: &str = "grouped_linear";

/// The experts' matrices, `[experts, out, in]`.
#[derive(Clone, Copy, Debug)]
pub enum Stack<'a> {
    /// Not trained: only the input's gradient passes through.
    Frozen(&'a Weight),
    /// Trained, f32.
    Trained(&'a Value),
}

/// One adapter's term on a stack.
#[derive(Clone, Debug)]
pub struct LowRankStack {
    /// `[experts·r, in]`, an expert's rows next to each other.
    pub a: Value,
    /// `[out, r·experts]`, an expert's columns `experts` apart.
    pub b: Value,
    /// `lora_alpha / r` or its variant.
    pub scale: f32,
}

/// What doesn't change from expert to expert.
#[derive(Clone, Debug)]
struct Layout {
    /// Rows of `x` that each expert takes.
    groups: Arc<[Range<usize>]>,
    input: usize,
    /// Rows of one matrix.
    out: usize,
}

impl Layout {
    fn rows(&self) -> usize {
        self.groups.last().map_or(0, |last| last.end)
    }

    /// The experts that have rows.
    fn used(&self) -> Vec<(usize, Range<usize>)> {
        let groups = self.groups.iter().cloned().enumerate();
        groups.filter(|(_, rows)| !rows.is_empty()).collect()
    }
}

/// The pieces of memory that make up an expert's matrix of `out` rows, one below another, and their
/// rows.
pub(crate) fn expert_pieces(
    stack: &Weight,
    out: usize,
    expert: usize,
) -> Result<Vec<(Range<usize>, Weight)>> {
    let matrix = stack.rows(expert * out..(expert + 1) * out)?;
    let mut end = 0;
    let rows = |piece: Weight| {
        let start = end;
        end += piece.dims()[0];
        (start..end, piece)
    };
    Ok(matrix.pieces().into_iter().map(rows).collect())
}

/// The product of each expert's rows of `x` `[n, in]` with its matrix: `[n, out]`, bf16 if the
/// matrices are. `groups` says which rows each expert takes, one range after another.
///
/// # Errors
/// Shapes that don't fit each other; groups that aren't the rows of `x`, in order.
pub fn grouped_linear(
    x: &Value,
    groups: &Arc<[Range<usize>]>,
    stack: Stack<'_>,
    terms: Vec<LowRankStack>,
) -> Result<Value> {
    let _time = profile::scope(OP);
    let (weight, trained) = match stack {
        Stack::Frozen(weight) => (weight.clone(), None),
        Stack::Trained(value) => (Weight::from_tensor(value.data())?, Some(value)),
    };
    let layout = check(x, groups, &weight, &terms)?;
    if let Some(device) = composed::device_with(&weight, [x.data()]) {
        let stack = (weight, trained);
        return composed::grouped_linear(x, groups, stack, &terms, &device);
    }
    let contiguous = |t: LowRankStack| -> Result<LowRankStack> {
        Ok(LowRankStack { a: t.a.contiguous()?, b: t.b.contiguous()?, scale: t.scale })
    };
    let terms = terms.into_iter().map(contiguous).collect::<Result<Vec<_>>>()?;
    let x_data = x.data().contiguous()?;
    let elements = Floats::of(OP, &x_data)?;
    let elements = elements.elements();
    let kept: Vec<SavedTerm> = terms.iter().map(SavedTerm::of).collect();
    let half = weight.dtype() == DType::BF16;
    let (y, hidden) = {
        let factors = factors(&kept, &layout)?;
        match half {
            true => forward::<bf16>(elements, &weight, &layout, &factors)?,
            false => forward::<f32>(elements, &weight, &layout, &factors)?,
        }
    };
    let mut parents = vec![x];
    parents.extend(trained);
    parents.extend(terms.iter().flat_map(|t| [&t.a, &t.b]));
    let y = y.tensor(&[layout.rows(), layout.out])?;
    let y = Value::record_many(OP, y, &parents, |_| {
        let need_matrix = trained.map(Value::needs_gradient);
        let reads_x = need_matrix == Some(true) || kept.iter().any(|t| t.need_a);
        let saved = Saved {
            x: reads_x.then(|| Kept::of(x, &x_data)),
            hidden: kept.iter().any(|t| t.need_b).then_some(hidden),
            need_x: x.needs_gradient(),
            narrow: x.is_narrow(),
            terms: kept,
            weight,
            layout,
            need_matrix,
        };
        move |dy| saved.gradients(&dy.contiguous()?)
    });
    Ok(y.halved_if(half))
}

fn check(
    x: &Value,
    groups: &Arc<[Range<usize>]>,
    stack: &Weight,
    terms: &[LowRankStack],
) -> Result<Layout> {
    let wrong = |what, found: &[usize], must_be: String| Error::Shape {
        op: OP,
        what,
        found: found.to_vec(),
        must_be,
    };
    let &[experts, out, input] = stack.dims() else {
        return Err(wrong("the stack", stack.dims(), "[experts, out, in]".into()));
    };
    let (n, _) = dims2(OP, "the input", x.data())?;
    check_dims(OP, "the input", x.data(), &[n, input])?;
    let mut next = 0;
    let follows = |rows: &Range<usize>| {
        let fits = rows.start == next && rows.end >= next;
        next = rows.end;
        fits
    };
    if groups.len() != experts || !groups.iter().all(follows) || next != n {
        let found = [groups.len(), next];
        return Err(wrong("the groups", &found, format!("{experts} of {n} rows in order")));
    }
    for term in terms {
        let (rows, _) = dims2(OP, "`lora_A`", term.a.data())?;
        let r = rows / experts.max(1);
        check_dims(OP, "`lora_A`", term.a.data(), &[experts * r, input])?;
        check_dims(OP, "`lora_B`", term.b.data(), &[out, r * experts])?;
    }
    Ok(Layout { groups: Arc::clone(groups), input, out })
}

/// What an adapter's gradients need of it.
struct SavedTerm {
    a: Tensor,
    b: Tensor,
    scale: f32,
    need_a: bool,
    need_b: bool,
}

impl SavedTerm {
    fn of(term: &LowRankStack) -> Self {
        let (need_a, need_b) = (term.a.needs_gradient(), term.b.needs_gradient());
        let (a, b) = (term.a.data().clone(), term.b.data().clone());
        Self { a, b, scale: term.scale, need_a, need_b }
    }
}

/// An adapter's factors by expert.
struct Factor<'a> {
    /// `[experts·r, in]`
    a: F32<'a>,
    /// `[r·experts, out]`: `B` by columns, so that products run along contiguous memory.
    b: Vec<f32>,
    r: usize,
    experts: usize,
    input: usize,
    out: usize,
    scale: f32,
}

fn factors<'a>(terms: &'a [SavedTerm], layout: &Layout) -> Result<Vec<Factor<'a>>> {
    terms.iter().map(|term| Factor::of(term, layout)).collect()
}

impl<'a> Factor<'a> {
    fn of(term: &'a SavedTerm, layout: &Layout) -> Result<Self> {
        let Layout { input, out, .. } = *layout;
        let experts = layout.groups.len();
        let b = F32::of(OP, &term.b)?;
        let width = b.len() / out.max(1);
        let r = width / experts.max(1);
        let b = transposed(&b, [out, width]);
        Ok(Self { a: F32::of(OP, &term.a)?, b, r, experts, input, out, scale: term.scale })
    }

    /// `A_e`, `[r, in]`.
    fn a_of(&self, expert: usize) -> View<'_> {
        let size = self.r * self.input;
        View::new(&self.a[expert * size..][..size], self.r, self.input)
    }

    /// Rows of `B_e`, `[rows.len(), r]`.
    fn b_of(&self, expert: usize, rows: &Range<usize>) -> View<'_> {
        let columns = &self.b[expert * self.out + rows.start..];
        View::strided(columns, self.r, rows.len(), self.experts * self.out, 1).t()
    }
}

/// The transpose of the first `rows` rows of `columns` elements, made on all threads.
fn transposed(from: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    const COLUMNS: usize = 16; // of a task: a cache line of each row
    filled(rows * columns, COLUMNS * rows, |start, to| {
        let first = start / rows;
        let part = View::strided(&from[first..], rows, to.len() / rows, columns, 1);
        product::transpose(part, 1.0, rows, to);
    })
}

/// `left·right` on all threads, `[m, n]`.
fn times(scale: f32, left: View<'_>, right: View<'_>, [m, n]: [usize; 2]) -> Vec<f32> {
    let mut to = vec![0.0; m * n];
    product_parallel(&mut Target::new(&mut to, n), false, scale, left, right);
    to
}

/// What each expert that has rows keeps of each term: `h`.
type Hidden = Vec<Vec<Vec<f32>>>;

fn forward<T: Room>(
    x: Elements<'_>,
    stack: &Weight,
    layout: &Layout,
    factors: &[Factor<'_>],
) -> Result<(Computed, Hidden)> {
    let Layout { input, out, .. } = *layout;
    let used = layout.used();
    let (y, hidden) = filled_parts(&lens(&used, out), |at, y: &mut [T]| {
        let (expert, rows) = &used[at];
        let n = rows.len();
        let x = View::over(x.slice(rows.start * input..rows.end * input), n, input);
        let hidden: Vec<Vec<f32>> =
            (factors.iter()).map(|t| times(t.scale, x, t.a_of(*expert).t(), [n, t.r])).collect();
        for (rows, weight) in &expert_pieces(stack, out, *expert)? {
            let terms: Vec<Term<'_>> = (factors.iter().zip(&hidden))
                .map(|(t, h)| Term { left: View::new(h, n, t.r), right: t.b_of(*expert, rows) })
                .collect();
            let of = Linear { x, weight, bias: None, terms: &terms };
            product::linear_into(&mut y[rows.start..], out, of)?;
        }
        Ok(hidden)
    });
    Ok((T::computed(y), hidden.into_iter().collect::<Result<_>>()?))
}

/// Elements of each expert's rows, of `width` each.
fn lens(used: &[(usize, Range<usize>)], width: usize) -> Vec<usize> {
    used.iter().map(|(_, rows)| rows.len() * width).collect()
}

struct Saved {
    /// Kept only if a matrix or an `A` trains.
    x: Option<Kept>,
    /// Kept only if a `B` trains.
    hidden: Option<Hidden>,
    terms: Vec<SavedTerm>,
    weight: Weight,
    layout: Layout,
    need_x: bool,
    /// Whether the input's gradient is rounded to bf16, as it is.
    narrow: bool,
    need_matrix: Option<bool>,
}

/// What one expert's rows yield.
struct Found {
    expert: usize,
    /// `[out, in]`
    matrix: Option<Vec<f32>>,
    /// `[r, in]` and `[r, out]` of each term.
    terms: Vec<[Option<Vec<f32>>; 2]>,
}

impl Saved {
    /// In the order of the parents: x, matrix, then A and B of each term.
    fn gradients(&self, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let layout = &self.layout;
        let (n, input) = (layout.rows(), layout.input);
        let dy = Floats::of(OP, dy)?;
        let x = self.x.as_ref().map(|x| x.read(OP)).transpose()?;
        let x = x.as_ref().map(Floats::elements);
        let factors = factors(&self.terms, layout)?;
        let (dx, found) = match self.narrow {
            true => self.by_expert::<bf16>(dy.elements(), x, &factors)?,
            false => self.by_expert::<f32>(dy.elements(), x, &factors)?,
        };
        let dx = self.need_x.then(|| dx.tensor(&[n, input])).transpose()?;
        let mut all = vec![dx];
        if let Some(needed) = self.need_matrix {
            all.push(needed.then(|| self.matrix_gradient(&found)).transpose()?);
        }
        for (index, (term, factor)) in self.terms.iter().zip(&factors).enumerate() {
            let da = term.need_a.then(|| self.a_gradient(&found, index, factor.r));
            let db = term.need_b.then(|| self.b_gradient(&found, index, factor.r));
            all.extend([da.transpose()?, db.transpose()?]);
        }
        Ok(all)
    }

    /// The gradient of the input, if it is needed, and what each of the experts that have rows finds.
    fn by_expert<T: Room>(
        &self,
        dy: Elements<'_>,
        x: Option<Elements<'_>>,
        factors: &[Factor<'_>],
    ) -> Result<(Computed, Vec<Found>)> {
        let Layout { input, out, .. } = self.layout;
        let used = self.layout.used();
        let width = if self.need_x { input } else { 0 };
        let (dx, found) = filled_parts(&lens(&used, width), |at, dx: &mut [T]| {
            let ((expert, rows), dx) = (&used[at], self.need_x.then_some(dx));
            let dy = dy.slice(rows.start * out..rows.end * out);
            let x = x.map(|x| x.slice(rows.start * input..rows.end * input));
            self.of_expert(*expert, at, dy, x, dx, factors)
        });
        Ok((T::computed(dx), found.into_iter().collect::<Result<_>>()?))
    }

    /// What the `at`-th of the experts that have rows finds.
    fn of_expert<T: Room>(
        &self,
        expert: usize,
        at: usize,
        dy: Elements<'_>,
        x: Option<Elements<'_>>,
        dx: Option<&mut [T]>,
        factors: &[Factor<'_>],
    ) -> Result<Found> {
        let Layout { input, out, .. } = self.layout;
        let n = self.layout.groups.get(expert).map_or(0, Range::len);
        let (dy, x) = (View::over(dy, n, out), x.map(|x| View::over(x, n, input)));
        let dh: Vec<Vec<f32>> = (factors.iter().zip(&self.terms))
            .map(|(factor, term)| match dx.is_some() || term.need_a {
                true => times(factor.scale, dy, factor.b_of(expert, &(0..out)), [n, factor.r]),
                false => Vec::new(),
            })
            .collect();
        if let Some(dx) = dx {
            let terms: Vec<Term<'_>> = (factors.iter().zip(&dh))
                .map(|(t, dh)| Term { left: View::new(dh, n, t.r), right: t.a_of(expert).t() })
                .collect();
            let pieces = expert_pieces(&self.weight, out, expert)?;
            let layers = pieces.iter().enumerate().map(|(i, (rows, weight))| {
                let terms = if i == 0 { &*terms } else { &[] };
                Linear { x: dy.columns(rows.clone()), weight, bias: None, terms }
            });
            product::linear_input_gradients_into(dx, &layers.collect::<Vec<_>>())?;
        }
        let matrix = x.filter(|_| self.need_matrix == Some(true));
        let matrix = matrix.map(|x| times(1.0, dy.t(), x, [out, input]));
        let of_term = |(i, term): (usize, &SavedTerm)| {
            let r = factors[i].r;
            let x = x.filter(|_| term.need_a);
            let da = x.map(|x| times(1.0, View::new(&dh[i], n, r).t(), x, [r, input]));
            let h = self.hidden.as_ref().filter(|_| term.need_b).map(|h| &h[at][i]);
            let db = h.map(|h| times(1.0, View::new(h, n, r).t(), dy, [r, out]));
            [da, db]
        };
        Ok(Found { expert, matrix, terms: self.terms.iter().enumerate().map(of_term).collect() })
    }

    fn experts(&self) -> usize {
        self.layout.groups.len()
    }

    fn matrix_gradient(&self, found: &[Found]) -> Result<Tensor> {
        let Layout { input, out, .. } = self.layout;
        let mut all = vec![0.0; self.experts() * out * input];
        for one in found {
            put(&mut all, one.expert * out * input, one.matrix.as_deref());
        }
        tensor(all, &[self.experts(), out, input])
    }

    fn a_gradient(&self, found: &[Found], term: usize, r: usize) -> Result<Tensor> {
        let (experts, input) = (self.experts(), self.layout.input);
        let mut all = vec![0.0; experts * r * input];
        for one in found {
            put(&mut all, one.expert * r * input, one.terms[term][0].as_deref());
        }
        tensor(all, &[experts * r, input])
    }

    fn b_gradient(&self, found: &[Found], term: usize, r: usize) -> Result<Tensor> {
        let (experts, out) = (self.experts(), self.layout.out);
        let width = r * experts;
        let mut columns = vec![0.0; width * out];
        for one in found {
            let of_expert = one.terms[term][1].iter().flat_map(|db| db.chunks_exact(out.max(1)));
            for (j, column) in of_expert.enumerate() {
                put(&mut columns, (j * experts + one.expert) * out, Some(column));
            }
        }
        tensor(transposed(&columns, [width, out]), &[out, width])
    }
}

/// Copies a block that is there to its place.
fn put(all: &mut [f32], first: usize, block: Option<&[f32]>) {
    if let Some(block) = block {
        all[first..first + block.len()].copy_from_slice(block);
    }
}
