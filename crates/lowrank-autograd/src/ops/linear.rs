//! Linear layers with low-rank adapters: `y = x·Wᵀ + b + Σ s·(drop(x)·Aᵀ + …)·Bᵀ`
//! (LoRA, arXiv:2106.09685, equation 3).
//!
//! With `h = drop(x)·Aᵀ` and `dh = s·dy·B` for each adapter:
//! `dx = dy·W + Σ drop(dh·A)`, `dA = dhᵀ·drop(x)`, `dB = s·dyᵀ·h`, `dW = dyᵀ·x`, `db = Σ dy`.
//!
//! The result is rounded to bf16 where the matrix is bf16, and `dx` where `x` is, unless an adapter
//! drops some of it; sums are f32.
//!
//! A frozen layer saves nothing; an adapter saves `x` only if `A` trains and `h` only if `B` does.
//! Bias and adapters are added by the product itself, while a tile of `y` or `dx` is in registers.

use candle_core::{DType, Tensor};

use crate::{
    Dropout, Error, Result, Value, Weight, composed,
    elements::Elements,
    kept::Kept,
    kernels::{
        Computed, F32, Floats, check_dims, dims2,
        elementwise::column_sums,
        product::{self, Linear, Target, Term, View, product_parallel},
        tensor,
    },
    profile,
};

const OP: &str = "linear";

/// The matrix of a linear layer, `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// Not trained: only the input's gradient passes through it.
    Frozen(&'a Weight),
    /// Trained, f32. `transposed` says that the value is `[in, out]`.
    Trained {
        /// The parameter's value.
        value: &'a Value,
        /// Whether its rows are inputs (GPT-2's Conv1D).
        transposed: bool,
    },
}

impl<'a> Matrix<'a> {
    /// The value, if it is one.
    fn trained(self) -> Option<&'a Value> {
        match self {
            Self::Trained { value, .. } => Some(value),
            Self::Frozen(_) => None,
        }
    }
}

/// One adapter's term.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[r, in]`.
    pub a: Value,
    /// `[out, r]`.
    pub b: Value,
    /// `[out]`, multiplied by `scale` as `B` is.
    pub bias: Option<Value>,
    /// `lora_alpha / r` or its variant.
    pub scale: f32,
    /// Dropout on `A`'s input.
    pub dropout: Option<Dropout>,
}

impl LowRank {
    fn contiguous(&self) -> Result<Self> {
        let (a, b) = (self.a.contiguous()?, self.b.contiguous()?);
        let bias = self.bias.as_ref().map(Value::contiguous).transpose()?;
        Ok(Self { a, b, bias, scale: self.scale, dropout: self.dropout.clone() })
    }
}

/// `x` `[n, in]`, `bias` `[out]`; returns `[n, out]`, bf16 if the matrix is.
///
/// # Errors
/// Shapes that don't fit each other, a dropout mask with fewer rows than `x`.
pub fn linear(
    x: &Value,
    matrix: Matrix<'_>,
    bias: Option<&Value>,
    terms: Vec<LowRank>,
) -> Result<Value> {
    let narrow = frozen(matrix)?.dtype() == DType::BF16;
    linear_as(x, matrix, bias, terms, narrow)
}

/// [`linear`], always of f32: logits and scores, which are compared with each other.
///
/// # Errors
/// As [`linear`].
pub fn logits(
    x: &Value,
    matrix: Matrix<'_>,
    bias: Option<&Value>,
    terms: Vec<LowRank>,
) -> Result<Value> {
    linear_as(x, matrix, bias, terms, false)
}

fn linear_as(
    x: &Value,
    matrix: Matrix<'_>,
    bias: Option<&Value>,
    terms: Vec<LowRank>,
    narrow: bool,
) -> Result<Value> {
    let _time = profile::scope(OP);
    let frozen = frozen(matrix)?;
    check(x, &frozen, bias, &terms)?;
    if let Some(device) = composed::device_with(&frozen, [x.data()]) {
        return composed::linear(x, &frozen, matrix.trained(), bias, &terms, narrow, &device);
    }
    let bias = bias.map(Value::contiguous).transpose()?;
    let bias = bias.as_ref();
    let terms = terms.iter().map(LowRank::contiguous).collect::<Result<Vec<_>>>()?;
    let x_data = x.data().contiguous()?;
    let (y, hidden) = forward(&x_data, &frozen, bias, &terms, narrow)?;
    let half = frozen.dtype() == DType::BF16;
    let trained = matrix.trained();
    let mut parents = vec![x];
    parents.extend(trained);
    parents.extend(bias);
    for term in &terms {
        parents.extend([&term.a, &term.b]);
        parents.extend(&term.bias);
    }
    let y = Value::record_many(OP, y, &parents, |_| {
        let saved = Saved {
            x: needs_input(trained, &terms).then(|| Kept::of(x, &x_data)),
            need_x: x.needs_gradient(),
            narrow: x.is_narrow() && terms.iter().all(|t| t.dropout.is_none()),
            need_matrix: trained.map(Value::needs_gradient),
            need_bias: bias.map(Value::needs_gradient),
            terms: terms.iter().zip(hidden).map(|(t, h)| SavedTerm::of(t, h)).collect(),
            transposed: frozen.is_transposed(),
            matrix: frozen,
        };
        move |dy| saved.gradients(&dy.contiguous()?)
    });
    Ok(y.halved_if(half))
}

/// The matrix as a weight that kernels read.
fn frozen(matrix: Matrix<'_>) -> Result<Weight> {
    match matrix {
        Matrix::Frozen(weight) => Ok(weight.clone()),
        Matrix::Trained { value, transposed } => {
            let weight = Weight::from_tensor(value.data())?;
            Ok(if transposed { weight.transpose() } else { weight })
        }
    }
}

fn needs_input(matrix: Option<&Value>, terms: &[LowRank]) -> bool {
    matrix.is_some_and(Value::needs_gradient) || terms.iter().any(|t| t.a.needs_gradient())
}

fn check(x: &Value, w: &Weight, bias: Option<&Value>, terms: &[LowRank]) -> Result<()> {
    let &[out, input] = w.dims() else {
        let (what, found) = ("the weight", w.dims().to_vec());
        return Err(Error::Shape { op: OP, what, found, must_be: "a matrix".into() });
    };
    let (n, _) = dims2(OP, "the input", x.data())?;
    check_dims(OP, "the input", x.data(), &[n, input])?;
    bias.map_or(Ok(()), |b| check_dims(OP, "the bias", b.data(), &[out]))?;
    for term in terms {
        let (r, _) = dims2(OP, "`lora_A`", term.a.data())?;
        check_dims(OP, "`lora_A`", term.a.data(), &[r, input])?;
        check_dims(OP, "`lora_B`", term.b.data(), &[out, r])?;
        let bias = term.bias.as_ref();
        bias.map_or(Ok(()), |b| check_dims(OP, "the bias of `lora_B`", b.data(), &[out]))?;
        term.dropout.as_ref().map_or(Ok(()), |d| d.check(OP, n))?;
    }
    Ok(())
}

/// The output, and `s·h` of each term.
fn forward(
    x: &Tensor,
    w: &Weight,
    bias: Option<&Value>,
    terms: &[LowRank],
    narrow: bool,
) -> Result<(Tensor, Vec<Tensor>)> {
    let (n, input) = dims2(OP, "the input", x)?;
    let out = w.dims().first().copied().unwrap_or_default();
    let x = Floats::of(OP, x)?;
    let hidden =
        terms.iter().map(|t| t.hidden(x.elements(), [n, input])).collect::<Result<Vec<_>>>()?;
    let factors = terms.iter().map(|t| F32::of(OP, t.b.data())).collect::<Result<Vec<_>>>()?;
    let pairs = terms.iter().zip(&hidden).zip(&factors);
    let low_rank: Vec<_> = pairs
        .map(|((t, h), b)| {
            let r = t.a.dims()[0];
            Term { left: View::new(h, n, r), right: View::new(b, out, r) }
        })
        .collect();
    let bias = whole_bias(bias, terms, out)?;
    let x = View::over(x.elements(), n, w.dims()[1]);
    let (bias, terms_of) = (bias.as_deref(), &low_rank);
    let y = product::linear(Linear { x, weight: w, bias, terms: terms_of }, narrow)?;
    let hidden = terms.iter().zip(hidden).map(|(t, h)| tensor(h, &[n, t.a.dims()[0]]));
    Ok((y.tensor(&[n, out])?, hidden.collect::<Result<_>>()?))
}

/// The layer's bias and those of its terms, in one.
fn whole_bias(bias: Option<&Value>, terms: &[LowRank], out: usize) -> Result<Option<Vec<f32>>> {
    if bias.is_none() && terms.iter().all(|t| t.bias.is_none()) {
        return Ok(None);
    }
    let mut sum = match bias {
        Some(bias) => F32::of(OP, bias.data())?.to_vec(),
        None => vec![0.0; out],
    };
    for term in terms {
        if let Some(bias) = &term.bias {
            let bias = F32::of(OP, bias.data())?;
            sum.iter_mut().zip(&*bias).for_each(|(sum, b)| *sum += term.scale * b);
        }
    }
    Ok(Some(sum))
}

impl LowRank {
    /// `s·drop(x)·Aᵀ`, `[n, r]`.
    fn hidden(&self, x: Elements<'_>, [n, input]: [usize; 2]) -> Result<Vec<f32>> {
        let r = self.a.dims()[0];
        let a = F32::of(OP, self.a.data())?;
        let dropped = self.dropout.as_ref().map(|d| d.apply(&x.wide(), input));
        let x = View::over(dropped.as_deref().map_or(x, Elements::F32), n, input);
        let mut h = vec![0.0; n * r];
        let a = View::new(&a, r, input);
        product_parallel(&mut Target::new(&mut h, r), false, self.scale, x, a.t());
        Ok(h)
    }
}

struct Saved {
    /// Kept only if a matrix or an `A` trains.
    x: Option<Kept>,
    matrix: Weight,
    transposed: bool,
    need_x: bool,
    /// Whether the input's gradient is rounded to bf16, as it is.
    narrow: bool,
    need_matrix: Option<bool>,
    need_bias: Option<bool>,
    terms: Vec<SavedTerm>,
}

struct SavedTerm {
    a: Tensor,
    b: Tensor,
    /// `s·h`, kept only if `B` trains.
    h: Option<Tensor>,
    scale: f32,
    dropout: Option<Dropout>,
    need_a: bool,
    need_bias: Option<bool>,
}

impl SavedTerm {
    fn of(term: &LowRank, h: Tensor) -> Self {
        Self {
            a: term.a.data().clone(),
            b: term.b.data().clone(),
            h: term.b.needs_gradient().then_some(h),
            scale: term.scale,
            dropout: term.dropout.clone(),
            need_a: term.a.needs_gradient(),
            need_bias: term.bias.as_ref().map(Value::needs_gradient),
        }
    }
}

impl Saved {
    /// In the order of the parents: x, matrix, bias, then A, B and bias of each term.
    fn gradients(&self, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (n, out) = dims2(OP, "the gradient", dy)?;
        let dy = Floats::of(OP, dy)?;
        let dy = dy.elements();
        let input = self.matrix.dims().get(1).copied().unwrap_or_default();
        let x = self.x.as_ref().map(|x| x.read(OP)).transpose()?;
        let x = x.as_ref().map(Floats::elements);
        let parts = self.terms.iter().map(|t| t.hidden_gradient(dy, [n, out], self.need_x));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let mut dx = match self.need_x {
            true => Some(self.input_gradient(dy, &parts, [n, input])?),
            false => None,
        };
        let mut rest = Vec::new();
        if let Some(needed) = self.need_matrix {
            let x = x.filter(|_| needed);
            rest.push(x.map(|x| self.matrix_gradient(dy, x, n, out, input)).transpose()?);
        }
        if let Some(needed) = self.need_bias {
            let sums = || tensor(column_sums(&dy.wide(), out), &[out]);
            rest.push(needed.then(sums).transpose()?);
        }
        for (term, dh) in self.terms.iter().zip(&parts) {
            if let (Some(Computed::F32(dx)), Some(dropout)) = (&mut dx, &term.dropout) {
                term.add_input_gradient(dx, dh, dropout, [n, input])?;
            }
            rest.extend(term.gradients(dy, x, dh, [n, out, input])?);
        }
        let dx = dx.map(|dx| dx.tensor(&[n, input])).transpose()?;
        Ok(std::iter::once(dx).chain(rest).collect())
    }

    /// `dy·W + Σ dh·A` over the terms without dropout.
    fn input_gradient(
        &self,
        dy: Elements<'_>,
        parts: &[Vec<f32>],
        [n, input]: [usize; 2],
    ) -> Result<Computed> {
        let plain: Vec<_> =
            self.terms.iter().zip(parts).filter(|(term, _)| term.dropout.is_none()).collect();
        let factors = plain.iter().map(|(term, _)| F32::of(OP, &term.a));
        let factors = factors.collect::<Result<Vec<_>>>()?;
        let pairs = plain.iter().zip(&factors);
        let terms: Vec<Term<'_>> = pairs
            .map(|((term, dh), a)| {
                let r = term.a.dims()[0];
                Term { left: View::new(dh, n, r), right: View::new(a, r, input).t() }
            })
            .collect();
        let (weight, terms) = (&self.matrix, &*terms);
        let x = View::over(dy, n, weight.dims()[0]);
        let of = Linear { x, weight, bias: None, terms };
        product::linear_input_gradient(of, self.narrow)
    }

    fn matrix_gradient(
        &self,
        dy: Elements<'_>,
        x: Elements<'_>,
        n: usize,
        out: usize,
        input: usize,
    ) -> Result<Tensor> {
        let (dy, x) = (View::over(dy, n, out), View::over(x, n, input));
        let (left, right, shape) =
            if self.transposed { (x, dy, [input, out]) } else { (dy, x, [out, input]) };
        let mut dw = vec![0.0; out * input];
        product_parallel(&mut Target::new(&mut dw, shape[1]), false, 1.0, left.t(), right);
        tensor(dw, &shape)
    }
}

impl SavedTerm {
    /// `dh = s·dy·B`, `[n, r]`; empty if nothing needs it.
    fn hidden_gradient(
        &self,
        dy: Elements<'_>,
        [n, out]: [usize; 2],
        need_x: bool,
    ) -> Result<Vec<f32>> {
        if !need_x && !self.need_a {
            return Ok(Vec::new());
        }
        let r = self.a.dims()[0];
        // By columns, so that the few rows of `Bᵀ` meet the many of `dy` along contiguous memory.
        let columns = transposed(&F32::of(OP, &self.b)?, out, r);
        let (dy, b) = (View::over(dy, n, out), View::new(&columns, r, out));
        let mut dh = vec![0.0; n * r];
        product_parallel(&mut Target::new(&mut dh, r), false, self.scale, dy, b.t());
        Ok(dh)
    }

    /// Gradients of A, B and B's bias.
    fn gradients(
        &self,
        dy: Elements<'_>,
        x: Option<Elements<'_>>,
        dh: &[f32],
        [n, out, input]: [usize; 3],
    ) -> Result<Vec<Option<Tensor>>> {
        let r = self.a.dims()[0];
        let da = match x.filter(|_| self.need_a) {
            Some(x) => {
                let dropped = self.dropout.as_ref().map(|d| d.apply(&x.wide(), input));
                let x = View::over(dropped.as_deref().map_or(x, Elements::F32), n, input);
                let mut da = vec![0.0; r * input];
                let dh = View::new(dh, n, r);
                product_parallel(&mut Target::new(&mut da, input), false, 1.0, dh.t(), x);
                Some(tensor(da, &[r, input])?)
            }
            None => None,
        };
        let db = match &self.h {
            Some(h) => {
                let h = F32::of(OP, h)?;
                let (h, dy) = (View::new(&h, n, r), View::over(dy, n, out));
                let mut columns = vec![0.0; r * out];
                product_parallel(&mut Target::new(&mut columns, out), false, 1.0, h.t(), dy);
                Some(tensor(transposed(&columns, r, out), &[out, r])?)
            }
            None => None,
        };
        let mut found = vec![da, db];
        if let Some(needed) = self.need_bias {
            let sums = || column_sums(&dy.wide(), out).iter().map(|s| s * self.scale).collect();
            found.push(needed.then(|| tensor(sums(), &[out])).transpose()?);
        }
        Ok(found)
    }

    /// `dx += drop(dh·A)`.
    fn add_input_gradient(
        &self,
        dx: &mut [f32],
        dh: &[f32],
        dropout: &Dropout,
        [n, input]: [usize; 2],
    ) -> Result<()> {
        let a = F32::of(OP, &self.a)?;
        let r = self.a.dims()[0];
        let mut own = vec![0.0; dx.len()];
        let (dh, a) = (View::new(dh, n, r), View::new(&a, r, input));
        product_parallel(&mut Target::new(&mut own, input), false, 1.0, dh, a);
        let own = dropout.apply(&own, input);
        dx.iter_mut().zip(own).for_each(|(d, o)| *d += o);
        Ok(())
    }
}

/// The transpose of a row-major matrix.
fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut to = vec![0.0; rows * columns];
    for (i, row) in matrix.chunks_exact(columns.max(1)).enumerate() {
        to.iter_mut().skip(i).step_by(rows.max(1)).zip(row).for_each(|(to, v)| *to = *v);
    }
    to
}
