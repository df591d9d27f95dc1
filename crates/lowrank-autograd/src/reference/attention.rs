//! Scaled dot-product attention (arXiv:1706.03762), one head of one sequence at a time, with its
//! whole matrix of scores.

use std::ops::Range;

use candle_core::{D, Device, Tensor};

use crate::{
    Dropout, Error, Result,
    ops::{AttentionShape, Span},
    reference::dropout_factors,
};

/// What [`crate::ops::attention`] computes, in the same layout. Query rows must be covered by
/// `spans` in order.
///
/// # Errors
/// Shapes that don't fit each other, distances beyond `bias`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    shape: &AttentionShape,
    spans: &[Span],
    dropout: Option<&Dropout>,
) -> Result<Tensor> {
    let group = shape.heads / shape.kv_heads;
    let mut sequences = Vec::new();
    for span in spans {
        let mut heads = Vec::new();
        for head in 0..shape.heads {
            let q = head_of(q, &span.queries, head, shape.head_dim)?;
            let k = head_of(k, &span.keys, head / group, shape.head_dim)?;
            let v = head_of(v, &span.keys, head / group, shape.value_dim)?;
            let mut scores = (q.matmul(&k.t()?)? * f64::from(shape.scale))?;
            if let Some(cap) = shape.softcap.map(f64::from) {
                scores = ((scores / cap)?.tanh()? * cap)?;
            }
            if let Some(bias) = bias {
                scores = (scores + distances(bias, head, span)?)?;
            }
            let mut p = softmax(&scores, &visible(shape, span)?)?;
            if let Some(dropout) = dropout {
                p = (&p * factors(dropout, head, span)?.to_dtype(p.dtype())?)?;
            }
            heads.push(p.matmul(&v)?);
        }
        sequences.push(Tensor::cat(&heads, 1)?);
    }
    Ok(Tensor::cat(&sequences, 0)?)
}

/// One head of one sequence, `[rows, dim]`.
fn head_of(x: &Tensor, rows: &Range<usize>, head: usize, dim: usize) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?.narrow(1, head * dim, dim)?.contiguous()?)
}

/// 1 where a query sees a key, else 0: `[queries, keys]`, u8.
fn visible(shape: &AttentionShape, span: &Span) -> Result<Tensor> {
    let sees = |query: usize, key: usize| {
        let past = !shape.causal || key <= query;
        let near = shape.window.is_none_or(|window| key + window > query);
        u8::from(past && near)
    };
    let seen: Vec<u8> = pairs(span).map(|(query, key)| sees(query, key)).collect();
    Ok(Tensor::from_vec(seen, (span.queries.len(), span.keys.len()), &Device::Cpu)?)
}

/// The positions of every query with every key.
fn pairs(span: &Span) -> impl Iterator<Item = (usize, usize)> {
    let keys = span.keys.len();
    (0..span.queries.len()).flat_map(move |i| (0..keys).map(move |j| (span.offset + i, j)))
}

/// What `bias` adds to the scores of a head, `[queries, keys]`.
fn distances(bias: &Tensor, head: usize, span: &Span) -> Result<Tensor> {
    let (rows, _) = bias.dims2()?;
    let index =
        |(query, key): (usize, usize)| u32::try_from((rows / 2 + key).checked_sub(query)?).ok();
    let indices: Option<Vec<u32>> = pairs(span).map(index).collect();
    let indices = indices.ok_or_else(|| Error::Shape {
        op: "attention",
        what: "the bias",
        found: bias.dims().to_vec(),
        must_be: "as long as the distances".to_owned(),
    })?;
    let column = bias.narrow(1, head, 1)?.flatten_all()?.contiguous()?;
    let added = column.index_select(&Tensor::new(indices, &Device::Cpu)?, 0)?;
    Ok(added.reshape((span.queries.len(), span.keys.len()))?)
}

/// Softmax over the keys that are seen; zeros where none is.
fn softmax(scores: &Tensor, seen: &Tensor) -> Result<Tensor> {
    let hidden = Tensor::new(f64::NEG_INFINITY, &Device::Cpu)?.to_dtype(scores.dtype())?;
    let scores = seen.where_cond(scores, &hidden.broadcast_as(scores.shape())?)?;
    let max = scores.max_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN))?;
    let exp = scores.broadcast_sub(&max)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
    Ok(exp.broadcast_div(&sum)?)
}

/// Dropout factors of a head's probabilities, `[queries, keys]`.
fn factors(dropout: &Dropout, head: usize, span: &Span) -> Result<Tensor> {
    let rows = span.queries.clone().map(|row| dropout.rows.get(row).copied().unwrap_or_default());
    let own = Dropout { p: dropout.p, key: dropout.key.with(head as u64), rows: rows.collect() };
    dropout_factors(&own, span.queries.len(), span.keys.len())
}
