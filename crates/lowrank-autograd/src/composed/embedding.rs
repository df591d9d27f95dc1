//! Embedding lookup with low-rank adapters.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{data, places};
use crate::{Result, Value, Weight, ops::LowRankRows};

/// [`crate::ops::embedding`] of the rows of `w`, which is `trained` if it is a value's.
pub(crate) fn embedding(
    w: &Weight,
    trained: Option<&Value>,
    (ids, padding): (&Arc<[u32]>, Option<u32>),
    terms: &[LowRankRows],
    device: &Device,
) -> Result<Value> {
    let rows = w.dims().first().copied().unwrap_or_default();
    // 0 for padding, whose row gets no gradient.
    let counts: Option<Tensor> = padding
        .map(|padding| {
            let counts = ids.iter().map(|id| f32::from(u8::from(*id != padding))).collect();
            Tensor::from_vec(counts, (ids.len(), 1), device)
        })
        .transpose()?;
    let of_rows =
        move |d: &Tensor| counts.as_ref().map_or(Ok(d.clone()), |counts| d.broadcast_mul(counts));
    let ids = places(device, ids.iter().map(|id| *id as usize))?;
    let table = w.on(device)?.contiguous()?;
    let mut y = table.index_select(&ids, 0)?.to_dtype(DType::F32)?;
    let mut parents: Vec<&Value> = trained.into_iter().collect();
    let mut kept = Vec::with_capacity(terms.len());
    for term in terms {
        let (own, saved) = Saved::of(term, &ids)?;
        y = (y + own)?;
        kept.push(saved);
        parents.extend([&term.a, &term.b]);
    }
    let y = Value::record_many("embedding", y, &parents, |_| {
        let need_table = trained.map(Value::needs_gradient);
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (mut found, own) = (Vec::new(), of_rows(&dy)?);
            if let Some(needed) = need_table {
                let zeros = || Tensor::zeros((rows, dy.dim(1)?), DType::F32, ids.device());
                found.push(needed.then(|| zeros()?.index_add(&ids, &own, 0)).transpose()?);
            }
            for term in &kept {
                found.extend(term.gradients([&dy, &own], &ids, rows)?);
            }
            Ok(found)
        }
    });
    Ok(y.halved_if(trained.is_none() && w.dtype() == DType::BF16))
}

/// What an adapter's gradients need.
struct Saved {
    /// Kept only if `A` trains.
    b: Option<Tensor>,
    /// `[n, r]`, kept only if `B` trains.
    h: Option<Tensor>,
    scale: f64,
}

impl Saved {
    /// What the term adds to the rows, and what its gradients need.
    fn of(term: &LowRankRows, ids: &Tensor) -> Result<(Tensor, Self)> {
        let (device, scale) = (ids.device(), f64::from(term.scale));
        let (a, b) = (data(device, &term.a)?, data(device, &term.b)?);
        let h = a.index_select(ids, 1)?.t()?.contiguous()?;
        let y = (h.matmul(&b.t()?)? * scale)?;
        let (need_a, need_b) = (term.a.needs_gradient(), term.b.needs_gradient());
        Ok((y, Self { b: need_a.then_some(b), h: need_b.then_some(h), scale }))
    }

    /// `own` is `dy` without the rows of padding.
    fn gradients(
        &self,
        [dy, own]: [&Tensor; 2],
        ids: &Tensor,
        rows: usize,
    ) -> Result<[Option<Tensor>; 2]> {
        let da = |b: &Tensor| -> Result<Tensor> {
            let dh = (own.matmul(b)? * self.scale)?.t()?.contiguous()?;
            let zeros = Tensor::zeros((dh.dim(0)?, rows), DType::F32, dy.device())?;
            Ok(zeros.index_add(ids, &dh, 1)?)
        };
        let db = |h: &Tensor| dy.t()?.matmul(h)? * self.scale;
        Ok([self.b.as_ref().map(da).transpose()?, self.h.as_ref().map(db).transpose()?])
    }
}
