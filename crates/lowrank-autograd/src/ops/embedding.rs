//! Embedding lookup with low-rank adapters: `y = W[ids] + Σ s·(A[:, ids])ᵀ·Bᵀ` (PEFT's LoRA on
//! embeddings; no dropout there). `dW[ids] += dy`; with `h = (A[:, ids])ᵀ` and `dh = s·dy·B`:
//! `dA[:, ids] += dhᵀ`, `dB = s·dyᵀ·h`.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    Error, Result, Value, Weight,
    kernels::{
        F32, check_dims, dims2,
        product::{Target, View, product_parallel},
        tensor,
    },
    weight::Elements,
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
}

/// Rows `ids` of the table: `[ids.len(), dim]`, f32.
///
/// # Errors
/// [`Error::Index`] for an id outside the table; shapes that don't fit.
pub fn embedding(table: Rows<'_>, ids: &Arc<[u32]>, terms: Vec<LowRankRows>) -> Result<Value> {
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
    let mut y = look_up(table, ids, dim)?;
    let n = ids.len();
    let mut hidden = Vec::with_capacity(terms.len());
    let terms = terms.iter().map(LowRankRows::contiguous).collect::<Result<Vec<_>>>()?;
    for term in &terms {
        let (r, _) = dims2(OP, "`lora_embedding_A`", term.a.data())?;
        check_dims(OP, "`lora_embedding_A`", term.a.data(), &[r, rows])?;
        check_dims(OP, "`lora_embedding_B`", term.b.data(), &[dim, r])?;
        let h = columns(&F32::of(OP, term.a.data())?, ids, r, rows);
        let b = F32::of(OP, term.b.data())?;
        let (hv, bv) = (View::new(&h, n, r), View::new(&b, dim, r));
        product_parallel(&mut Target::new(&mut y, dim), true, term.scale, hv, bv.t());
        hidden.push(tensor(h, &[n, r])?);
    }
    let trained = match table {
        Rows::Trained(v) => Some(v),
        Rows::Frozen(_) => None,
    };
    let mut parents: Vec<&Value> = trained.into_iter().collect();
    parents.extend(terms.iter().flat_map(|t| [&t.a, &t.b]));
    let has_table = trained.is_some();
    Ok(Value::record_many(OP, tensor(y, &[n, dim])?, &parents, |_| {
        let ids = Arc::clone(ids);
        let saved: Vec<_> = terms
            .iter()
            .zip(hidden)
            .map(|(t, h)| (t.b.data().clone(), t.b.needs_gradient().then_some(h), t.scale))
            .collect();
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let dy = F32::of(OP, &dy)?;
            let mut found = Vec::new();
            if has_table {
                found.push(Some(tensor(scatter_rows(&dy, &ids, rows, dim), &[rows, dim])?));
            }
            for (b, h, scale) in &saved {
                found.extend(term_gradients(&dy, &ids, b, h.as_ref(), *scale, rows)?);
            }
            Ok(found)
        }
    }))
}

fn look_up(table: Rows<'_>, ids: &[u32], dim: usize) -> Result<Vec<f32>> {
    let frozen;
    let weight = match table {
        Rows::Frozen(w) => w,
        Rows::Trained(v) => {
            frozen = Weight::from_tensor(v.data())?;
            &frozen
        }
    };
    let memory = weight.matrix(OP)?;
    let mut y = Vec::with_capacity(ids.len() * dim);
    weight.with_elements(|elements| {
        for &id in ids {
            let start = id as usize * memory.row_stride;
            let places = (0..dim).map(|column| start + column * memory.column_stride);
            match elements {
                Elements::F32(w) => y.extend(places.map(|i| w.get(i).copied().unwrap_or_default())),
                Elements::Bf16(w) => y.extend(places.map(|i| w.get(i).map_or(0.0, |v| v.to_f32()))),
                Elements::F16(w) => y.extend(places.map(|i| w.get(i).map_or(0.0, |v| v.to_f32()))),
            }
        }
    })?;
    Ok(y)
}

/// `(A[:, ids])ᵀ`: `[ids.len(), r]`.
fn columns(a: &[f32], ids: &[u32], r: usize, rows: usize) -> Vec<f32> {
    let element = |id: u32, k: usize| a.get(k * rows + id as usize).copied().unwrap_or_default();
    ids.iter().flat_map(|&id| (0..r).map(move |k| element(id, k))).collect()
}

fn scatter_rows(dy: &[f32], ids: &[u32], rows: usize, dim: usize) -> Vec<f32> {
    let mut dw = vec![0.0; rows * dim];
    for (dy, &id) in dy.chunks_exact(dim.max(1)).zip(ids) {
        if let Some(to) = dw.get_mut(id as usize * dim..(id as usize + 1) * dim) {
            to.iter_mut().zip(dy).for_each(|(t, d)| *t += d);
        }
    }
    dw
}

fn term_gradients(
    dy: &[f32],
    ids: &[u32],
    b: &Tensor,
    h: Option<&Tensor>,
    scale: f32,
    rows: usize,
) -> Result<[Option<Tensor>; 2]> {
    let (dim, r) = dims2(OP, "`lora_embedding_B`", b)?;
    let n = ids.len();
    let dy = View::new(dy, n, dim);
    let mut dh = vec![0.0; n * r];
    let b = F32::of(OP, b)?;
    product_parallel(&mut Target::new(&mut dh, r), false, scale, dy, View::new(&b, dim, r));
    let mut da = vec![0.0; r * rows];
    for (dh, &id) in dh.chunks_exact(r.max(1)).zip(ids) {
        for (k, d) in dh.iter().enumerate() {
            if let Some(to) = da.get_mut(k * rows + id as usize) {
                *to += d;
            }
        }
    }
    let db = match h {
        Some(h) => {
            let h = F32::of(OP, h)?;
            let mut db = vec![0.0; dim * r];
            let h = View::new(&h, n, r);
            product_parallel(&mut Target::new(&mut db, r), false, scale, dy.t(), h);
            Some(tensor(db, &[dim, r])?)
        }
        None => None,
    };
    Ok([Some(tensor(da, &[r, rows])?), db])
}
