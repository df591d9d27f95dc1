//! Embedding lookup with low-rank adapters: `y = W[ids] + Σ s·(A[:, ids])ᵀ·Bᵀ` (PEFT's LoRA on
//! embeddings; no dropout there). `dW[ids] += dy`; with `h = (A[:, ids])ᵀ` and `dh = s·dy·B`:
//! `dA[:, ids] += dhᵀ`, `dB = s·dyᵀ·h`. Rows of padding keep what they are: as for torch's
//! `padding_idx`, `dW` and `dA` are 0 there.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use half::slice::HalfFloatSliceExt;

use crate::{
    Error, Result, Value, Weight, composed,
    elements::Elements,
    kernels::{
        F32, check_dims, dims2,
        product::{Target, View, product_parallel},
        rows::{gather, scatter_add},
        tensor,
    },
    profile,
    weight::Matrix,
};

const OP: &str = "embedding";

/// The table of an embedding, `[rows, dim]`.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Not trained: nothing is recorded.
    Frozen(&'a Weight),
    /// Trained, f32.
    Trained(&'a Value),
}

/// One adapter's term.
#[derive(Clone, Debug)]
pub struct LowRankRows {
    /// `[r, rows]`
    pub a: Value,
    /// `[dim, r]`
    pub b: Value,
    /// `lora_alpha / r` or its variant.
    pub scale: f32,
}

impl LowRankRows {
    fn contiguous(&self) -> Result<Self> {
        let (a, b) = (self.a.contiguous()?, self.b.contiguous()?);
        Ok(Self { a, b, scale: self.scale })
    }

    fn check(&self, rows: usize, dim: usize) -> Result<()> {
        let (r, _) = dims2(OP, "`lora_embedding_A`", self.a.data())?;
        check_dims(OP, "`lora_embedding_A`", self.a.data(), &[r, rows])?;
        check_dims(OP, "`lora_embedding_B`", self.b.data(), &[dim, r])
    }

    fn data(&self) -> [&Tensor; 2] {
        [self.a.data(), self.b.data()]
    }
}

/// Rows `ids` of the table: `[ids.len(), dim]`, f32. The row `padding` gets no gradient.
///
/// # Errors
/// [`Error::Index`] for an id outside the table; shapes that don't fit.
pub fn embedding(
    table: Rows<'_>,
    ids: &Arc<[u32]>,
    terms: Vec<LowRankRows>,
    padding: Option<u32>,
) -> Result<Value> {
    let _time = profile::scope(OP);
    let dims = match table {
        Rows::Frozen(w) => w.dims(),
        Rows::Trained(v) => v.dims(),
    };
    let &[rows, dim] = dims else {
        let (what, found) = ("the table", dims.to_vec());
        return Err(Error::Shape { op: OP, what, found, must_be: "a matrix".into() });
    };
    if let Some((place, &id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
        return Err(Error::Index { op: OP, index: id as usize, place, len: rows });
    }
    terms.iter().try_for_each(|term| term.check(rows, dim))?;
    let (weight, trained) = match table {
        Rows::Frozen(weight) => (weight.clone(), None),
        Rows::Trained(value) => (Weight::from_tensor(value.data())?, Some(value)),
    };
    if let Some(device) = composed::device_with(&weight, terms.iter().flat_map(LowRankRows::data)) {
        return composed::embedding(&weight, trained, (ids, padding), &terms, &device);
    }
    let mut y = look_up(&weight, ids, dim)?;
    let n = ids.len();
    let mut hidden = Vec::with_capacity(terms.len());
    let terms = terms.iter().map(LowRankRows::contiguous).collect::<Result<Vec<_>>>()?;
    for term in &terms {
        let r = term.a.dims()[0];
        let h = columns(&F32::of(OP, term.a.data())?, ids, r, rows);
        let b = F32::of(OP, term.b.data())?;
        let (hv, bv) = (View::new(&h, n, r), View::new(&b, dim, r));
        product_parallel(&mut Target::new(&mut y, dim), true, term.scale, hv, bv.t());
        hidden.push(tensor(h, &[n, r])?);
    }
    let mut parents: Vec<&Value> = trained.into_iter().collect();
    parents.extend(terms.iter().flat_map(|t| [&t.a, &t.b]));
    let half = trained.is_none() && weight.dtype() == DType::BF16;
    let y = Value::record_many(OP, tensor(y, &[n, dim])?, &parents, |_| {
        let ids = Arc::clone(ids);
        let need_table = trained.map(Value::needs_gradient);
        let saved: Vec<_> = terms.iter().zip(hidden).map(|(t, h)| Saved::of(t, h)).collect();
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let dy = F32::of(OP, &dy)?;
            let mut found = Vec::new();
            if let Some(needed) = need_table {
                let dw = || table_gradient(&dy, (&ids, padding), [rows, dim]);
                found.push(needed.then(dw).transpose()?);
            }
            for term in &saved {
                found.extend([term.a_gradient(&dy, (&ids, padding), rows)?, term.b_gradient(&dy)?]);
            }
            Ok(found)
        }
    });
    Ok(y.halved_if(half))
}

fn table_gradient(
    dy: &[f32],
    (ids, padding): (&[u32], Option<u32>),
    [rows, dim]: [usize; 2],
) -> Result<Tensor> {
    let places = ids.iter().map(|id| *id as usize);
    let mut dw = scatter_add(Elements::F32(dy), places, rows, dim);
    if let Some(row) = padding.and_then(|id| dw.chunks_mut(dim.max(1)).nth(id as usize)) {
        row.fill(0.0);
    }
    tensor(dw, &[rows, dim])
}

fn look_up(weight: &Weight, ids: &[u32], dim: usize) -> Result<Vec<f32>> {
    let memory = weight.matrix(OP)?;
    weight.with_elements(|elements| {
        gather(ids.len(), dim, |i, row| widen_row(elements, &memory, ids[i] as usize, row))
    })
}

/// Row `index` of a table as f32.
fn widen_row(elements: Elements<'_>, memory: &Matrix, index: usize, row: &mut [f32]) {
    let start = index * memory.row_stride;
    if memory.column_stride == 1 {
        let range = start..start + row.len();
        return match elements {
            Elements::F32(w) => row.copy_from_slice(&w[range]),
            Elements::Bf16(w) => w[range].convert_to_f32_slice(row),
            Elements::F16(w) => w[range].convert_to_f32_slice(row),
        };
    }
    for (column, element) in row.iter_mut().enumerate() {
        let place = start + column * memory.column_stride;
        *element = match elements {
            Elements::F32(w) => w[place],
            Elements::Bf16(w) => w[place].to_f32(),
            Elements::F16(w) => w[place].to_f32(),
        };
    }
}

/// `(A[:, ids])ᵀ`: `[ids.len(), r]`.
fn columns(a: &[f32], ids: &[u32], r: usize, rows: usize) -> Vec<f32> {
    let element = |id: u32, k: usize| a.get(k * rows + id as usize).copied().unwrap_or_default();
    ids.iter().flat_map(|&id| (0..r).map(move |k| element(id, k))).collect()
}

/// What an adapter's gradients need.
struct Saved {
    /// Kept only if `A` trains.
    b: Option<Tensor>,
    /// `[n, r]`, kept only if `B` trains.
    h: Option<Tensor>,
    scale: f32,
}

impl Saved {
    fn of(term: &LowRankRows, h: Tensor) -> Self {
        Self {
            b: term.a.needs_gradient().then(|| term.b.data().clone()),
            h: term.b.needs_gradient().then_some(h),
            scale: term.scale,
        }
    }

    fn a_gradient(
        &self,
        dy: &[f32],
        (ids, padding): (&[u32], Option<u32>),
        rows: usize,
    ) -> Result<Option<Tensor>> {
        let Some(b) = &self.b else { return Ok(None) };
        let (dim, r) = dims2(OP, "`lora_embedding_B`", b)?;
        let mut dh = vec![0.0; ids.len() * r];
        let (dy, b) = (View::new(dy, ids.len(), dim), F32::of(OP, b)?);
        let b = View::new(&b, dim, r);
        product_parallel(&mut Target::new(&mut dh, r), false, self.scale, dy, b);
        let mut da = vec![0.0; r * rows];
        let trained = |(_, id): &(&[f32], &u32)| Some(**id) != padding;
        for (dh, &id) in dh.chunks_exact(r.max(1)).zip(ids).filter(trained) {
            for (k, d) in dh.iter().enumerate() {
                da[k * rows + id as usize] += d;
            }
        }
        Ok(Some(tensor(da, &[r, rows])?))
    }

    fn b_gradient(&self, dy: &[f32]) -> Result<Option<Tensor>> {
        let Some(h) = &self.h else { return Ok(None) };
        let (n, r) = dims2(OP, "`h`", h)?;
        let dim = dy.len() / n.max(1);
        let mut db = vec![0.0; dim * r];
        let (dy, h) = (View::new(dy, n, dim), F32::of(OP, h)?);
        let h = View::new(&h, n, r);
        product_parallel(&mut Target::new(&mut db, r), false, self.scale, dy.t(), h);
        Ok(Some(tensor(db, &[dim, r])?))
    }
}
