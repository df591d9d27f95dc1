//! Attention, one sequence after the other, each with its whole matrix of scores; it is made again
//! in the backward pass, so that no more than one sequence's is there at a time.

use std::{ops::Range, sync::Arc};

use candle_core::{D, DType, Device, Tensor};

use super::{data, factors, filled, places};
use crate::{
    Dropout, Result, Value,
    kept::Kept,
    ops::{AttentionShape, Span},
};

/// What the scores of a sequence are made of.
pub(super) struct Setting<'a> {
    pub(super) shape: &'a AttentionShape,
    /// `[distances, heads]`
    pub(super) bias: Option<&'a Tensor>,
    pub(super) dropout: Option<&'a Dropout>,
}

/// The probabilities of a sequence, `[heads, queries, keys]` like all here, and what they come from.
struct Probabilities {
    /// Without dropout.
    p: Tensor,
    /// The mask's factors.
    dropped: Option<Tensor>,
    /// The derivative of the cap.
    slope: Option<Tensor>,
    /// Which row of the bias belongs to each pair of a query and a key.
    distances: Option<Tensor>,
}

/// The gradients of one sequence.
struct Gradients {
    /// Of `q`, `k` and `v`.
    operands: [Tensor; 3],
    /// Of what is added to the scores, as rows `[pairs, heads]`, behind the row of the bias that each
    /// belongs to, if there is one.
    by_distance: Option<(Tensor, Tensor)>,
}

/// [`crate::ops::attention`].
pub(crate) fn attention(
    operands: [&Value; 3],
    bias: Option<&Value>,
    shape: &AttentionShape,
    spans: &Arc<[Span]>,
    dropout: Option<Dropout>,
    device: &Device,
) -> Result<Value> {
    let [q, k, v] = operands.map(|value| data(device, value));
    let tensors = [q?, k?, v?];
    let bias_data = bias.map(|bias| data(device, bias)).transpose()?;
    let setting = Setting { shape, bias: bias_data.as_ref(), dropout: dropout.as_ref() };
    let mut parts = Vec::with_capacity(spans.len());
    for span in spans.iter().filter(|span| !span.queries.is_empty()) {
        let [q, k, v] = of_span(&tensors, span)?;
        parts.push((span.queries.clone(), setting.forward(&q, &k, &v, span)?));
    }
    let (n, width) = (tensors[0].dim(0)?, shape.heads * shape.value_dim);
    let y = assembled(parts, n, width, device)?;
    let mut parents = operands.to_vec();
    parents.extend(bias);
    let y = Value::record_many("attention", y, &parents, |_| {
        let kept = [0, 1, 2].map(|i| Kept::composed(operands[i], &tensors[i]));
        let (shape, spans) = (shape.clone(), Arc::clone(spans));
        move |dy: Tensor| {
            let [q, k, v] = kept.map(|kept| kept.tensor());
            let tensors = [q?, k?, v?];
            let (bias, dropout) = (bias_data.as_ref(), dropout.as_ref());
            let setting = Setting { shape: &shape, bias, dropout };
            setting.gradients(&tensors, &dy.contiguous()?, &spans)
        }
    });
    Ok(y)
}

/// A sequence's rows of the operands.
fn of_span([q, k, v]: &[Tensor; 3], span: &Span) -> Result<[Tensor; 3]> {
    let rows = |x: &Tensor, rows: &Range<usize>| x.narrow(0, rows.start, rows.len());
    Ok([rows(q, &span.queries)?, rows(k, &span.keys)?, rows(v, &span.keys)?])
}

/// Rows of parts at their places among `n`; zeros where there are none, sums where there are several.
pub(super) fn assembled(
    mut parts: Vec<(Range<usize>, Tensor)>,
    n: usize,
    width: usize,
    device: &Device,
) -> Result<Tensor> {
    parts.retain(|(rows, _)| !rows.is_empty());
    parts.sort_by_key(|(rows, _)| rows.start);
    let zeros = |rows: usize| Tensor::zeros((rows, width), DType::F32, device);
    if parts.windows(2).any(|pair| pair[1].0.start < pair[0].0.end) {
        let mut sum = zeros(n)?;
        for (rows, part) in parts {
            sum = (sum + part.pad_with_zeros(0, rows.start, n - rows.end)?)?;
        }
        return Ok(sum);
    }
    let (mut all, mut next) = (Vec::with_capacity(parts.len()), 0);
    for (rows, part) in parts {
        if next < rows.start {
            all.push(zeros(rows.start - next)?);
        }
        next = rows.end;
        all.push(part);
    }
    if next < n || all.is_empty() {
        all.push(zeros(n - next)?);
    }
    Ok(Tensor::cat(&all, 0)?)
}

/// `[rows, heads·dim]` as `[heads, rows, dim]`.
pub(super) fn by_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    Ok(x.reshape((rows, heads, width / heads))?.transpose(0, 1)?.contiguous()?)
}

/// `[heads, rows, dim]` as `[rows, heads·dim]`.
pub(super) fn by_row(x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(0, 1)?.contiguous()?.flatten_from(1)?)
}

impl Setting<'_> {
    /// Query heads that share a key head lie next to each other: as rows of one matrix they need no
    /// copies of the keys.
    fn grouped(&self, x: &Tensor) -> Result<Tensor> {
        let (heads, rows, dim) = x.dims3()?;
        let kv = self.shape.kv_heads;
        Ok(x.reshape((kv, heads / kv * rows, dim))?)
    }

    fn ungrouped(&self, x: &Tensor) -> Result<Tensor> {
        let (kv, rows, dim) = x.dims3()?;
        let heads = self.shape.heads;
        Ok(x.reshape((heads, kv * rows / heads, dim))?)
    }

    /// Attends in one sequence: `[queries, heads·value_dim]`.
    pub(super) fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        span: &Span,
    ) -> Result<Tensor> {
        let [heads, kv] = [self.shape.heads, self.shape.kv_heads];
        if span.keys.is_empty() {
            let width = heads * self.shape.value_dim;
            return Ok(Tensor::zeros((span.queries.len(), width), DType::F32, q.device())?);
        }
        let (q, k, v) = (by_head(q, heads)?, by_head(k, kv)?, by_head(v, kv)?);
        let found = self.probabilities(&q, &k, span)?;
        by_row(&self.ungrouped(&self.grouped(&found.dropped()?)?.matmul(&v)?)?)
    }

    fn probabilities(&self, q: &Tensor, k: &Tensor, span: &Span) -> Result<Probabilities> {
        let (device, shape) = (q.device(), self.shape);
        let z = self.grouped(q)?.matmul(&k.t()?)?;
        let mut z = (self.ungrouped(&z)? * f64::from(shape.scale))?;
        let mut slope = None;
        if let Some(cap) = shape.softcap.map(f64::from) {
            let t = (z / cap)?.tanh()?;
            slope = Some((t.sqr()?.neg()? + 1.0)?);
            z = (t * cap)?;
        }
        let distances = self.bias.map(|bias| distances(bias, span, device)).transpose()?;
        if let (Some(bias), Some(rows)) = (self.bias, &distances) {
            let (heads, queries, keys) = z.dims3()?;
            let added = bias.index_select(rows, 0)?.t()?.reshape((heads, queries, keys))?;
            z = (z + added)?;
        }
        let hidden = hidden(shape, span, device)?;
        if let Some(hidden) = &hidden {
            z = filled(&z, hidden, f32::NEG_INFINITY)?;
        }
        // Finite, so that a row without any key gets zeros.
        let max = z.max_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN))?;
        let exp = z.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
        let dropped =
            self.dropout.map(|mask| masks(mask, shape.heads, span, device)).transpose()?;
        Ok(Probabilities { p: exp.broadcast_div(&sum)?, dropped, slope, distances })
    }

    /// Gradients of `q`, `k`, `v` and, if there is one, the bias.
    fn gradients(
        &self,
        tensors: &[Tensor; 3],
        dy: &Tensor,
        spans: &[Span],
    ) -> Result<Vec<Option<Tensor>>> {
        let mut parts = [const { Vec::new() }; 3];
        let mut dbias = self.bias.map(Tensor::zeros_like).transpose()?;
        for span in spans.iter().filter(|s| !s.queries.is_empty() && !s.keys.is_empty()) {
            let dy = dy.narrow(0, span.queries.start, span.queries.len())?;
            let found = self.of_one(of_span(tensors, span)?, &dy, span)?;
            if let (Some(sum), Some((rows, ds))) = (&dbias, found.by_distance) {
                dbias = Some(sum.index_add(&rows, &ds, 0)?);
            }
            let rows = [&span.queries, &span.keys, &span.keys];
            for ((parts, rows), one) in parts.iter_mut().zip(rows).zip(found.operands) {
                parts.push((rows.clone(), one));
            }
        }
        let mut found = Vec::with_capacity(4);
        for (parts, like) in parts.into_iter().zip(tensors) {
            let (n, width) = like.dims2()?;
            found.push(Some(assembled(parts, n, width, like.device())?));
        }
        if self.bias.is_some() {
            found.push(dbias);
        }
        Ok(found)
    }

    /// What one sequence's gradients are.
    fn of_one(&self, [q, k, v]: [Tensor; 3], dy: &Tensor, span: &Span) -> Result<Gradients> {
        let [heads, kv] = [self.shape.heads, self.shape.kv_heads];
        let (q, k, v) = (by_head(&q, heads)?, by_head(&k, kv)?, by_head(&v, kv)?);
        let dy = self.grouped(&by_head(dy, heads)?)?;
        let found = self.probabilities(&q, &k, span)?;
        let dv = self.grouped(&found.dropped()?)?.transpose(1, 2)?.matmul(&dy)?;
        let mut dp = self.ungrouped(&dy.matmul(&v.t()?)?)?;
        if let Some(dropped) = &found.dropped {
            dp = (dp * dropped)?;
        }
        let mean = (&dp * &found.p)?.sum_keepdim(D::Minus1)?;
        let mut ds = (dp.broadcast_sub(&mean)? * &found.p)?;
        let by_distance = match found.distances {
            Some(rows) => Some((rows, ds.flatten_from(1)?.t()?.contiguous()?)),
            None => None,
        };
        if let Some(slope) = found.slope {
            ds = (ds * slope)?;
        }
        let ds = self.grouped(&(ds * f64::from(self.shape.scale))?)?;
        let dq = self.ungrouped(&ds.matmul(&k)?)?;
        let dk = ds.transpose(1, 2)?.matmul(&self.grouped(&q)?)?;
        Ok(Gradients { operands: [by_row(&dq)?, by_row(&dk)?, by_row(&dv)?], by_distance })
    }
}

impl Probabilities {
    /// With dropout.
    fn dropped(&self) -> Result<Tensor> {
        Ok(self.dropped.as_ref().map_or(Ok(self.p.clone()), |factors| &self.p * factors)?)
    }
}

/// The factors of the probabilities of all heads: each has a mask of its own.
pub(super) fn masks(mask: &Dropout, heads: usize, span: &Span, device: &Device) -> Result<Tensor> {
    let rows = span.queries.clone().map(|row| mask.rows.get(row).copied().unwrap_or_default());
    let rows: Arc<[u64]> = rows.collect();
    let one = |head: usize| {
        let key = mask.key.with(head as u64);
        let own = Dropout { p: mask.p, key, rows: Arc::clone(&rows) };
        factors(device, &own, span.queries.len(), span.keys.len())
    };
    Ok(Tensor::stack(&(0..heads).map(one).collect::<Result<Vec<_>>>()?, 0)?)
}

/// 1 where a query doesn't see a key, `[queries, keys]`; `None` if each sees all.
fn hidden(shape: &AttentionShape, span: &Span, device: &Device) -> Result<Option<Tensor>> {
    if !shape.causal && shape.window.is_none() {
        return Ok(None);
    }
    // Exact, as there are fewer than 2^24 of them.
    let row = |from: usize, len: usize| Tensor::arange(from as f32, (from + len) as f32, device);
    let queries = row(span.offset, span.queries.len())?.unsqueeze(1)?;
    let keys = row(0, span.keys.len())?.unsqueeze(0)?;
    let ahead = shape.causal.then(|| keys.broadcast_gt(&queries)).transpose()?;
    let window = shape.window.filter(|w| *w < span.offset + span.queries.len());
    let behind = window.map(|w| (&keys + w as f64)?.broadcast_le(&queries)).transpose()?;
    Ok(match (ahead, behind) {
        (Some(ahead), Some(behind)) => Some(ahead.maximum(&behind)?),
        (one, other) => one.or(other),
    })
}

/// The row of the bias for each query with each key, pair by pair.
fn distances(bias: &Tensor, span: &Span, device: &Device) -> Result<Tensor> {
    let (middle, keys) = (bias.dim(0)? / 2, span.keys.len());
    let queries = span.offset..span.offset + span.queries.len();
    places(device, queries.flat_map(|query| (0..keys).map(move |key| middle + key - query)))
}
