//! Attention, one sequence after the other, each with its whole matrix of scores; it is made again
//! in the backward pass, so that no more than one sequence's is there at a time.

use std::{ops::Range, sync::Arc};

use candle_core::{D, DType, Device, Tensor};

use super::{data, factor, factors, filled, matmul, places};
use crate::{
    Dropout, Result, Value,
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
    /// Without dropout, in the dtype of queries and keys.
    p: Tensor,
    /// Products of queries and keys, without scale and cap.
    z: Tensor,
    /// The mask's factors.
    dropped: Option<Tensor>,
    /// Which row of the bias belongs to each pair of a query and a key.
    distances: Option<Tensor>,
}

/// The gradients of one sequence.
struct Gradients {
    /// Of `q`, `k` and `v`.
    operands: [Tensor; 3],
    by_distance: ByDistance,
}

/// The gradient of what is added to the scores, as rows `[pairs, heads]`, behind the row of the bias
/// that each belongs to, if there is one.
type ByDistance = Option<(Tensor, Tensor)>;

/// [`crate::ops::attention`].
pub(crate) fn attention(
    operands: [&Value; 3],
    bias: Option<&Value>,
    shape: &AttentionShape,
    spans: &Arc<[Span]>,
    dropout: Option<Dropout>,
    device: &Device,
) -> Result<Value> {
    let narrow = operands.iter().all(|value| value.half().is_some());
    let dtype = if narrow { DType::BF16 } else { DType::F32 };
    let [q, k, v] = operands.map(|value| factor(device, value, dtype));
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
        let (shape, spans) = (shape.clone(), Arc::clone(spans));
        move |dy: Tensor| {
            let (bias, dropout) = (bias_data.as_ref(), dropout.as_ref());
            let setting = Setting { shape: &shape, bias, dropout };
            setting.gradients(&tensors, &dy.to_dtype(dtype)?.contiguous()?, &spans)
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
    on_gpu!(x, by_head(x, heads));
    let (rows, width) = x.dims2()?;
    Ok(x.reshape((rows, heads, width / heads))?.transpose(0, 1)?.contiguous()?)
}

/// `[heads, rows, dim]` as `[rows, heads·dim]`.
pub(super) fn by_row(x: &Tensor) -> Result<Tensor> {
    on_gpu!(x, by_row(x));
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
        by_row(&self.ungrouped(&matmul(&self.grouped(&found.dropped()?)?, &v, 1.0)?)?)
    }

    fn probabilities(&self, q: &Tensor, k: &Tensor, span: &Span) -> Result<Probabilities> {
        let z = self.ungrouped(&matmul(&self.grouped(q)?, &k.t()?, 1.0)?)?;
        let mask = |mask| masks(mask, self.shape.heads, span, q.device());
        let dropped = self.dropout.map(mask).transpose()?;
        let distances = self.bias.map(|bias| distances(bias, span, q.device())).transpose()?;
        let p = self.softmax(&z, span, distances.as_ref(), q.dtype())?;
        Ok(Probabilities { p, z, dropped, distances })
    }

    /// Probabilities of products `z`, in `dtype`.
    fn softmax(
        &self,
        z: &Tensor,
        span: &Span,
        distances: Option<&Tensor>,
        dtype: DType,
    ) -> Result<Tensor> {
        if self.bias.is_none() {
            on_gpu!(z, softmax(z, self.shape, span, dtype));
        }
        let mut z = (z * f64::from(self.shape.scale))?;
        if let Some(cap) = self.shape.softcap.map(f64::from) {
            z = ((z / cap)?.tanh()? * cap)?;
        }
        if let (Some(bias), Some(rows)) = (self.bias, distances) {
            let added = bias.index_select(rows, 0)?.t()?.reshape(z.shape())?;
            z = (z + added)?;
        }
        if let Some(hidden) = hidden(self.shape, span, z.device())? {
            z = filled(&z, &hidden, f32::NEG_INFINITY)?;
        }
        // Finite, so that a row without any key gets zeros.
        let max = z.max_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN))?;
        let exp = z.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
        Ok(exp.broadcast_div(&sum)?.to_dtype(dtype)?)
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
        let dropped = found.dropped()?;
        let dv = matmul(&self.grouped(&dropped)?.transpose(1, 2)?, &dy, 1.0)?;
        let mut dp = self.ungrouped(&matmul(&dy, &v.t()?, 1.0)?)?;
        if let Some(dropped) = &found.dropped {
            dp = (dp * dropped)?;
        }
        let (ds, by_distance) = self.score_gradients(&dp, found)?;
        let ds = self.grouped(&ds)?;
        let dq = self.ungrouped(&matmul(&ds, &k, 1.0)?)?;
        let dk = matmul(&ds.transpose(1, 2)?, &self.grouped(&q)?, 1.0)?;
        Ok(Gradients { operands: [by_row(&dq)?, by_row(&dk)?, by_row(&dv)?], by_distance })
    }

    /// What the gradient of the probabilities makes of the products of queries and keys, in the dtype
    /// of these; and of what is added to the scores.
    fn score_gradients(&self, dp: &Tensor, found: Probabilities) -> Result<(Tensor, ByDistance)> {
        let Probabilities { p, z, distances, .. } = found;
        let Some(rows) = distances else {
            return Ok((self.softmax_gradient(dp, &p, &z)?, None));
        };
        let ds = softmax_gradient(dp, &p)?;
        let by_pair = ds.flatten_from(1)?.t()?.contiguous()?;
        Ok((self.before_scale(ds, &z)?.to_dtype(p.dtype())?, Some((rows, by_pair))))
    }

    /// The gradient of the products `z` where nothing is added to the scores.
    fn softmax_gradient(&self, dp: &Tensor, p: &Tensor, z: &Tensor) -> Result<Tensor> {
        on_gpu!(dp, softmax_backward(dp, p, z, self.shape));
        Ok(self.before_scale(softmax_gradient(dp, p)?, z)?.to_dtype(p.dtype())?)
    }

    /// The gradient of the products `z` from that of the scores.
    fn before_scale(&self, ds: Tensor, z: &Tensor) -> Result<Tensor> {
        let scale = f64::from(self.shape.scale);
        let slope = match self.shape.softcap.map(f64::from) {
            Some(cap) => ((z * (scale / cap))?.tanh()?.sqr()?.neg()? + 1.0)?,
            None => return Ok((ds * scale)?),
        };
        Ok(((ds * slope)? * scale)?)
    }
}

/// `(dp - Σ dp·p)·p`
fn softmax_gradient(dp: &Tensor, p: &Tensor) -> Result<Tensor> {
    let p = p.to_dtype(DType::F32)?;
    let mean = (dp * &p)?.sum_keepdim(D::Minus1)?;
    Ok((dp.broadcast_sub(&mean)? * p)?)
}

impl Probabilities {
    /// With dropout.
    fn dropped(&self) -> Result<Tensor> {
        let Some(factors) = &self.dropped else { return Ok(self.p.clone()) };
        Ok((self.p.to_dtype(DType::F32)? * factors)?.to_dtype(self.p.dtype())?)
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
