//! Disentangled attention (arXiv:2006.03654), one head of one sequence at a time, with its whole
//! matrices of scores.

use candle_core::{D, Device, Tensor};

use crate::{Dropout, Result, ops::Span, reference::dropout_factors};

/// What [`crate::ops::disentangled_attention`] computes, in the same layout; query rows must be
/// covered by `spans` in order. `tables` are what queries meet and what keys meet.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn disentangled_attention(
    [q, k, v]: [&Tensor; 3],
    tables: [Option<&Tensor>; 2],
    rows: &[u32],
    heads: usize,
    scale: f32,
    spans: &[Span],
    dropout: Option<&Dropout>,
) -> Result<Tensor> {
    let dim = q.dim(1)? / heads;
    let mut sequences = Vec::new();
    for span in spans {
        let (start, len) = (span.keys.start, span.keys.len());
        let row = |i: usize, j: usize| rows[rows.len() / 2 + i - j];
        let pairs = (0..len).flat_map(|i| (0..len).map(move |j| row(i, j)));
        let index = Tensor::from_iter(pairs, &Device::Cpu)?.reshape((len, len))?;
        let mut columns = Vec::new();
        for head in 0..heads {
            let own = |x: &Tensor| x.narrow(1, head * dim, dim)?.contiguous();
            let real = |x: &Tensor| own(&x.narrow(0, start, len)?);
            let (q, k) = (real(q)?, real(k)?);
            let mut scores = q.matmul(&k.t()?)?;
            if let Some(keys) = tables[0] {
                scores = (scores + q.matmul(&own(keys)?.t()?)?.gather(&index, 1)?)?;
            }
            if let Some(queries) = tables[1] {
                let by_key = k.matmul(&own(queries)?.t()?)?.gather(&index.t()?.contiguous()?, 1)?;
                scores = (scores + by_key.t()?)?;
            }
            let scores = (scores * f64::from(scale))?;
            let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
            let mut p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
            if let Some(d) = dropout {
                let keys = d.rows[start..start + len].iter().copied().collect();
                let own = Dropout { p: d.p, key: d.key.with(head as u64), rows: keys };
                p = (&p * dropout_factors(&own, len, len)?.to_dtype(p.dtype())?)?;
            }
            let all = own(&v.narrow(0, span.queries.start, span.queries.len())?)?;
            let padding = all.mean_keepdim(0)?;
            let around = |count: usize| padding.broadcast_as((count, dim));
            let before = around(start - span.queries.start)?;
            let after = around(span.queries.end - span.keys.end)?;
            columns.push(Tensor::cat(&[before, p.matmul(&real(v)?)?, after], 0)?);
        }
        sequences.push(Tensor::cat(&columns, 1)?);
    }
    Ok(Tensor::cat(&sequences, 0)?)
}
