//! Attention, one sequence after the other, some queries at a time with all their scores; these are
//! made again in the backward pass, so that no more than one block's are there at a time. On a GPU,
//! where operands suit it, kernels attend in tiles instead.

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
    #[cfg(feature = "cuda")]
    if setting.in_tiles(&tensors, spans) {
        return in_tiles(operands, tensors, shape, spans);
    }
    let mut parts = Vec::with_capacity(spans.len());
    for span in spans.iter().filter(|span| !span.queries.is_empty()) {
        parts.push((span.queries.clone(), setting.forward(&of_span(&tensors, span)?, span)?));
    }
    let (n, width) = (tensors[0].dim(0)?, shape.heads * shape.value_dim);
    let y = assembled(parts, n, width, dtype, device)?;
    let mut parents = operands.to_vec();
    parents.extend(bias);
    Ok(Value::record_many("attention", y, &parents, |_| {
        let (shape, spans) = (shape.clone(), Arc::clone(spans));
        move |dy: Tensor| {
            let (bias, dropout) = (bias_data.as_ref(), dropout.as_ref());
            let setting = Setting { shape: &shape, bias, dropout };
            setting.gradients(&tensors, &dy.contiguous()?, &spans)
        }
    }))
}

/// [`attention`] by kernels that never write scores to memory. Saved: the operands, the result and a
/// number for each row and head.
#[cfg(feature = "cuda")]
fn in_tiles(
    operands: [&Value; 3],
    tensors: [Tensor; 3],
    shape: &AttentionShape,
    spans: &Arc<[Span]>,
) -> Result<Value> {
    let (y, lse) = crate::cuda::attention(&tensors, shape, spans)?;
    Ok(Value::record("attention", y.clone(), operands, |_| {
        let (shape, spans) = (shape.clone(), Arc::clone(spans));
        move |dy: Tensor| {
            let (saved, dy) = ([&y, &lse], dy.contiguous()?);
            let found = crate::cuda::attention_backward(&tensors, saved, &dy, &shape, &spans)?;
            Ok(found.map(Some))
        }
    }))
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
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    parts.retain(|(rows, _)| !rows.is_empty());
    parts.sort_by_key(|(rows, _)| rows.start);
    let zeros = |rows: usize| Tensor::zeros((rows, width), dtype, device);
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

/// `[rows, heads·dim]` as `[heads, rows, dim]`, in `dtype`.
pub(super) fn by_head(x: &Tensor, heads: usize, dtype: DType) -> Result<Tensor> {
    on_gpu!(x, by_head(x, heads, dtype));
    let (rows, width) = x.dims2()?;
    let turned = x.reshape((rows, heads, width / heads))?.transpose(0, 1)?;
    Ok(turned.contiguous()?.to_dtype(dtype)?)
}

/// `[heads, rows, dim]` as `[rows, heads·dim]`, in `dtype`.
pub(super) fn by_row(x: &Tensor, dtype: DType) -> Result<Tensor> {
    on_gpu!(x, by_row(x, dtype));
    Ok(x.transpose(0, 1)?.contiguous()?.flatten_from(1)?.to_dtype(dtype)?)
}

/// Most queries of a [`Block`].
const QUERIES: usize = 512;

/// Some queries of a sequence and the keys that they may see, whose scores are there at once.
struct Block {
    /// Rows among the sequence's queries.
    queries: Range<usize>,
    /// Rows among its keys.
    keys: Range<usize>,
    /// The two as a sequence of their own.
    span: Span,
}

impl Block {
    /// The part of keys or values `[heads, keys, dim]` that belongs to it.
    fn part(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.narrow(1, self.keys.start, self.keys.len())?)
    }

    /// `sum + a·b` in its part of `sum`, which is 0 if it isn't there yet and `[heads, keys, dim]`
    /// like `x` in any case.
    fn added(&self, sum: Option<Tensor>, a: &Tensor, b: &Tensor, x: &Tensor) -> Result<Tensor> {
        if sum.is_none() && self.keys.len() == x.dim(1)? {
            return matmul(a, b, 1.0);
        }
        let sum = sum.map_or_else(|| Tensor::zeros(x.dims(), DType::F32, x.device()), Ok)?;
        on_gpu!(sum, add_product(self.part(&sum)?, a, b, 1.0).map(|_| sum));
        let behind = x.dim(1)? - self.keys.end;
        Ok((sum + matmul(a, b, 1.0)?.pad_with_zeros(1, self.keys.start, behind)?)?)
    }
}

impl Setting<'_> {
    /// Whether kernels attend in tiles, so that no scores are ever there.
    #[cfg(feature = "cuda")]
    fn in_tiles(&self, operands: &[Tensor; 3], spans: &[Span]) -> bool {
        let alone = self.bias.is_none() && self.dropout.is_none();
        alone && crate::cuda::takes_in_tiles(operands, self.shape, spans)
    }

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

    /// The blocks of a sequence. Masks of dropout begin at the first key.
    fn blocks(&self, span: &Span) -> impl Iterator<Item = Block> {
        let (n, keys, offset) = (span.queries.len(), span.keys.len(), span.offset);
        let (first_row, causal) = (span.queries.start, self.shape.causal);
        let window = self.shape.window.filter(|_| self.dropout.is_none());
        (0..n).step_by(QUERIES).map(move |start| {
            let queries = start..n.min(start + QUERIES);
            let last = if causal { keys.min(offset + queries.end) } else { keys };
            let first = window.map_or(0, |w| (offset + start + 1).saturating_sub(w).min(last));
            let keys = if first < last { first..last } else { 0..keys };
            let span = Span {
                queries: first_row + queries.start..first_row + queries.end,
                keys: 0..keys.len(),
                offset: offset + start - keys.start,
            };
            Block { queries, keys, span }
        })
    }

    /// Attends in one sequence: `[queries, heads·value_dim]`, in the dtype of the operands.
    pub(super) fn forward(&self, [q, k, v]: &[Tensor; 3], span: &Span) -> Result<Tensor> {
        let ([heads, kv], dtype) = ([self.shape.heads, self.shape.kv_heads], q.dtype());
        if span.keys.is_empty() {
            let width = heads * self.shape.value_dim;
            return Ok(Tensor::zeros((span.queries.len(), width), dtype, q.device())?);
        }
        let (k, v) = (by_head(k, kv, dtype)?, by_head(v, kv, dtype)?);
        let one = |block: Block| {
            let q = q.narrow(0, block.queries.start, block.queries.len())?;
            let q = by_head(&q, heads, dtype)?;
            let found = self.probabilities(&q, &block.part(&k)?, &block.span)?;
            let y = matmul(&self.grouped(&found.dropped()?)?, &block.part(&v)?, 1.0)?;
            by_row(&self.ungrouped(&y)?, dtype)
        };
        Ok(Tensor::cat(&self.blocks(span).map(one).collect::<Result<Vec<_>>>()?, 0)?)
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
            let found = self.of_sequence(&of_span(tensors, span)?, &dy, span, &mut dbias)?;
            let rows = [&span.queries, &span.keys, &span.keys];
            for ((parts, rows), one) in parts.iter_mut().zip(rows).zip(found) {
                parts.push((rows.clone(), one));
            }
        }
        let mut found = Vec::with_capacity(4);
        for (parts, like) in parts.into_iter().zip(tensors) {
            let (n, width) = like.dims2()?;
            found.push(Some(assembled(parts, n, width, like.dtype(), like.device())?));
        }
        if self.bias.is_some() {
            found.push(dbias);
        }
        Ok(found)
    }

    /// The gradients of one sequence's queries, keys and values; that of what is added to the scores
    /// goes to `dbias`.
    fn of_sequence(
        &self,
        [q, k, v]: &[Tensor; 3],
        dy: &Tensor,
        span: &Span,
        dbias: &mut Option<Tensor>,
    ) -> Result<[Tensor; 3]> {
        let ([heads, kv], dtype) = ([self.shape.heads, self.shape.kv_heads], q.dtype());
        let (k, v) = (by_head(k, kv, dtype)?, by_head(v, kv, dtype)?);
        let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
        for block in self.blocks(span) {
            let rows = |x: &Tensor| -> Result<Tensor> {
                by_head(&x.narrow(0, block.queries.start, block.queries.len())?, heads, dtype)
            };
            let (q, dy) = (rows(q)?, self.grouped(&rows(dy)?)?);
            let found = self.probabilities(&q, &block.part(&k)?, &block.span)?;
            let p = self.grouped(&found.dropped()?)?.transpose(1, 2)?;
            dv = Some(block.added(dv, &p, &dy, &v)?);
            let mut dp = self.ungrouped(&matmul(&dy, &block.part(&v)?.t()?, 1.0)?)?;
            if let Some(dropped) = &found.dropped {
                dp = (dp * dropped)?;
            }
            let (ds, by_distance) = self.score_gradients(&dp, found)?;
            if let (Some(sum), Some((rows, ds))) = (&dbias, by_distance) {
                *dbias = Some(sum.index_add(&rows, &ds, 0)?);
            }
            let ds = self.grouped(&ds)?;
            dq.push(by_row(&self.ungrouped(&matmul(&ds, &block.part(&k)?, 1.0)?)?, dtype)?);
            dk = Some(block.added(dk, &ds.transpose(1, 2)?, &self.grouped(&q)?, &k)?);
        }
        let whole = |sum: Option<Tensor>, x: &Tensor| match sum {
            Some(sum) => by_row(&sum, dtype),
            None => Ok(x.zeros_like()?),
        };
        Ok([Tensor::cat(&dq, 0)?, whole(dk, &k)?, whole(dv, &v)?])
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
