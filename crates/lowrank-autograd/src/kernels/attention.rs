//! Scaled dot-product attention over packed sequences, a block of query rows at a time: scores
//! exist for [`BLOCK`] rows only, and the backward pass computes them again from the saved maximum
//! and sum of each row's softmax (FlashAttention, arXiv:2205.14135, with one pass over the keys).

use std::ops::Range;

use rayon::prelude::*;

use super::product::{Target, View, product};
use crate::{
    Dropout,
    ops::{AttentionShape, Span},
};

/// Query rows whose scores exist at a time.
const BLOCK: usize = 64;

/// Operands of one attention: `q` `[n, heads·head_dim]`, `k` `[m, kv_heads·head_dim]`, `v`
/// `[m, kv_heads·value_dim]`.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// `[distances, heads]`: what is added to a score, by key position less query position; the
    /// middle row is distance 0.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) shape: &'a AttentionShape,
    pub(crate) dropout: Option<&'a Dropout>,
}

/// Output `[n, heads·value_dim]` and the softmax of each head and query row, `[heads, n]`.
pub(crate) struct Forward {
    pub(crate) output: Vec<f32>,
    pub(crate) rows: Vec<SoftmaxRow>,
}

/// What turns the scores `s` of a row into probabilities `exp(s - max)/sum`. As one number,
/// `max + log(sum)`, the sum would be lost beside a large maximum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftmaxRow {
    max: f32,
    sum: f32,
}

impl SoftmaxRow {
    /// A row that sees no key: its scores of -∞ become zeros.
    const EMPTY: Self = Self { max: 0.0, sum: 1.0 };

    /// Turns the scores of a row into probabilities. One that sees nothing becomes zeros; a NaN
    /// stays one.
    fn apply(scores: &mut [f32]) -> Self {
        if scores.iter().all(|&s| s == f32::NEG_INFINITY) {
            scores.fill(0.0);
            return Self::EMPTY;
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for s in scores.iter_mut() {
            *s = (*s - max).exp();
            sum += *s;
        }
        scores.iter_mut().for_each(|s| *s /= sum);
        Self { max, sum }
    }

    /// The probability of a score, with the bits that [`SoftmaxRow::apply`] gave it.
    fn probability(self, score: f32) -> f32 {
        (score - self.max).exp() / self.sum
    }
}

/// Gradients of the operands, in their shapes.
pub(crate) struct Backward {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    of: Operands<'a>,
    span: &'a Span,
    head: usize,
}

impl<'a> Head<'a> {
    fn kv_head(&self) -> usize {
        self.head / (self.of.shape.heads / self.of.shape.kv_heads)
    }

    fn queries(&self, rows: &Range<usize>) -> View<'a> {
        let s = self.of.shape;
        let first = self.span.queries.start + rows.start;
        head_view(self.of.q, first, rows.len(), s.heads, s.head_dim, self.head)
    }

    fn keys(&self, columns: &Range<usize>) -> View<'a> {
        let s = self.of.shape;
        let first = self.span.keys.start + columns.start;
        head_view(self.of.k, first, columns.len(), s.kv_heads, s.head_dim, self.kv_head())
    }

    fn values(&self, columns: &Range<usize>) -> View<'a> {
        let s = self.of.shape;
        let first = self.span.keys.start + columns.start;
        head_view(self.of.v, first, columns.len(), s.kv_heads, s.value_dim, self.kv_head())
    }

    /// The keys that any of these query rows sees.
    fn visible(&self, rows: &Range<usize>) -> Range<usize> {
        let first = self.row_visible(rows.start).start;
        let last = self.row_visible(rows.end - 1).end;
        first..last.max(first)
    }

    /// The keys that one query row sees.
    fn row_visible(&self, row: usize) -> Range<usize> {
        let position = self.span.offset + row;
        let keys = self.span.keys.len();
        let end = if self.of.shape.causal { (position + 1).min(keys) } else { keys };
        let start = match self.of.shape.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        start.min(end)..end
    }

    /// Scores of a block of rows against `columns`, with bias and cap; what isn't seen is -∞.
    fn scores(&self, rows: &Range<usize>, columns: &Range<usize>, out: &mut [f32]) {
        let shape = self.of.shape;
        let (q, k) = (self.queries(rows), self.keys(columns));
        product(&mut Target::new(out, columns.len()), false, shape.scale, q, k.t());
        for (r, scores) in out.chunks_exact_mut(columns.len().max(1)).enumerate() {
            let row = rows.start + r;
            if let Some(cap) = shape.softcap {
                scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
            }
            if let Some(bias) = self.of.bias {
                for (c, s) in scores.iter_mut().enumerate() {
                    *s += bias.get(self.bias_index(bias, row, columns.start + c)).unwrap_or(&0.0);
                }
            }
            let seen = self.row_visible(row);
            for (c, s) in scores.iter_mut().enumerate() {
                if !seen.contains(&(columns.start + c)) {
                    *s = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn bias_index(&self, bias: &[f32], row: usize, column: usize) -> usize {
        let heads = self.of.shape.heads;
        let middle = bias.len() / heads / 2;
        (middle + column).saturating_sub(self.span.offset + row) * heads + self.head
    }

    /// Dropout factors of one row's probabilities.
    fn factors(&self, dropout: &Dropout, row: usize, start: usize, out: &mut [f32]) {
        let own = Dropout { key: dropout.key.with(self.head as u64), ..dropout.clone() };
        own.factors(self.span.queries.start + row, start, out);
    }

    fn forward(&self) -> (Vec<f32>, Vec<SoftmaxRow>) {
        let (n, dim) = (self.span.queries.len(), self.of.shape.value_dim);
        let mut output = vec![0.0; n * dim];
        let mut softmax = vec![SoftmaxRow::EMPTY; n];
        let mut block = Vec::new();
        let mut factors = Vec::new();
        for rows in blocks(n) {
            let columns = self.visible(&rows);
            block.resize(rows.len() * columns.len(), 0.0);
            self.scores(&rows, &columns, &mut block);
            for (r, scores) in block.chunks_exact_mut(columns.len().max(1)).enumerate() {
                let row = SoftmaxRow::apply(scores);
                if let Some(place) = softmax.get_mut(rows.start + r) {
                    *place = row;
                }
                if let Some(dropout) = self.of.dropout {
                    factors.resize(scores.len(), 0.0);
                    self.factors(dropout, rows.start + r, columns.start, &mut factors);
                    scores.iter_mut().zip(&factors).for_each(|(p, f)| *p *= f);
                }
            }
            let p = View::new(&block, rows.len(), columns.len());
            let to = output.get_mut(rows.start * dim..).unwrap_or_default();
            product(&mut Target::new(to, dim), false, 1.0, p, self.values(&columns));
        }
        (output, softmax)
    }
}

fn blocks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(rows))
}

/// Rows of one head of a packed tensor.
fn head_view(
    x: &[f32],
    first: usize,
    rows: usize,
    heads: usize,
    dim: usize,
    head: usize,
) -> View<'_> {
    let stride = heads * dim;
    let from =
        if rows == 0 { &[] } else { x.get(first * stride + head * dim..).unwrap_or_default() };
    View::strided(from, rows, dim, stride, 1)
}

/// Adds a head's rows to a packed tensor: sequences may share keys.
fn add_head(to: &mut [f32], from: &[f32], first: usize, heads: usize, dim: usize, head: usize) {
    let rows = to.chunks_exact_mut(heads * dim).skip(first);
    for (to, from) in rows.zip(from.chunks_exact(dim.max(1))) {
        if let Some(to) = to.get_mut(head * dim..(head + 1) * dim) {
            to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        }
    }
}

/// The forward pass over all sequences and heads.
pub(crate) fn forward(of: Operands<'_>, spans: &[Span], n: usize) -> Forward {
    let (heads, dim) = (of.shape.heads, of.shape.value_dim);
    let tasks: Vec<Head<'_>> =
        spans.iter().flat_map(|span| (0..heads).map(move |head| Head { of, span, head })).collect();
    let parts: Vec<_> = tasks.par_iter().map(Head::forward).collect();
    let mut result =
        Forward { output: vec![0.0; n * heads * dim], rows: vec![SoftmaxRow::EMPTY; heads * n] };
    for (task, (output, rows)) in tasks.iter().zip(parts) {
        let first = task.span.queries.start;
        add_head(&mut result.output, &output, first, heads, dim, task.head);
        let start = task.head * n + first;
        if let Some(to) = result.rows.get_mut(start..start + rows.len()) {
            to.copy_from_slice(&rows);
        }
    }
    result
}

/// What the backward pass of one key/value head of one sequence yields.
struct GroupGradients {
    /// One for each query head of the group.
    q: Vec<Vec<f32>>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[distances]` for each query head of the group.
    bias: Vec<Vec<f32>>,
}

/// What the forward pass left behind, and the gradient that came.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub(crate) output: &'a [f32],
    /// `[heads, n]`
    pub(crate) rows: &'a [SoftmaxRow],
    pub(crate) dy: &'a [f32],
    /// Query rows in all.
    pub(crate) n: usize,
}

/// The backward pass over all sequences and heads.
pub(crate) fn backward(of: Operands<'_>, spans: &[Span], saved: Saved<'_>) -> Backward {
    let shape = of.shape;
    let group = shape.heads / shape.kv_heads;
    let tasks: Vec<(&Span, usize)> = spans
        .iter()
        .flat_map(|span| (0..shape.kv_heads).map(move |kv_head| (span, kv_head)))
        .collect();
    let parts: Vec<GroupGradients> = tasks
        .par_iter()
        .map(|&(span, kv_head)| {
            let heads =
                (kv_head * group..(kv_head + 1) * group).map(|head| Head { of, span, head });
            group_backward(heads, span, of, saved)
        })
        .collect();
    let mut result = Backward {
        q: vec![0.0; of.q.len()],
        k: vec![0.0; of.k.len()],
        v: vec![0.0; of.v.len()],
        bias: of.bias.map(|b| vec![0.0; b.len()]),
    };
    for ((span, kv_head), part) in tasks.iter().zip(parts) {
        let (qs, ks) = (span.queries.start, span.keys.start);
        for (i, q) in part.q.iter().enumerate() {
            add_head(&mut result.q, q, qs, shape.heads, shape.head_dim, kv_head * group + i);
        }
        add_head(&mut result.k, &part.k, ks, shape.kv_heads, shape.head_dim, *kv_head);
        add_head(&mut result.v, &part.v, ks, shape.kv_heads, shape.value_dim, *kv_head);
        if let Some(bias) = &mut result.bias {
            for (i, own) in part.bias.iter().enumerate() {
                let column = bias.iter_mut().skip(kv_head * group + i).step_by(shape.heads);
                column.zip(own).for_each(|(to, from)| *to += from);
            }
        }
    }
    result
}

fn group_backward<'a>(
    heads: impl Iterator<Item = Head<'a>>,
    span: &Span,
    of: Operands<'_>,
    saved: Saved<'_>,
) -> GroupGradients {
    let (keys, shape) = (span.keys.len(), of.shape);
    let mut sum = GroupGradients {
        q: Vec::new(),
        k: vec![0.0; keys * shape.head_dim],
        v: vec![0.0; keys * shape.value_dim],
        bias: Vec::new(),
    };
    for head in heads {
        let mut dq = vec![0.0; span.queries.len() * shape.head_dim];
        let mut dbias = vec![0.0; of.bias.map_or(0, |b| b.len() / shape.heads)];
        for rows in blocks(span.queries.len()) {
            head.block_backward(&rows, saved, &mut dq, &mut sum, &mut dbias);
        }
        sum.q.push(dq);
        if of.bias.is_some() {
            sum.bias.push(dbias);
        }
    }
    sum
}

impl Head<'_> {
    /// With probabilities `p`, dropout factors `f`, `D = Σ dy·y` of the row and `dp = f·(dy·vᵀ)`:
    /// `ds = p·(dp - D)`, `dq = s·ds·k`, `dk += s·dsᵀ·q`, `dv += (f·p)ᵀ·dy`.
    fn block_backward(
        &self,
        rows: &Range<usize>,
        saved: Saved<'_>,
        dq: &mut [f32],
        sum: &mut GroupGradients,
        dbias: &mut [f32],
    ) {
        let shape = self.of.shape;
        let columns = self.visible(rows);
        let width = columns.len();
        if width == 0 {
            return;
        }
        let first = self.span.queries.start + rows.start;
        let head_of = |x| head_view(x, first, rows.len(), shape.heads, shape.value_dim, self.head);
        let dy = head_of(saved.dy);
        let mut scores = vec![0.0; rows.len() * width];
        self.scores(rows, &columns, &mut scores);
        let capped = shape.softcap.map(|cap| (cap, self.cap_slopes(rows, &columns, cap)));
        let mut dp = vec![0.0; rows.len() * width];
        product(&mut Target::new(&mut dp, width), false, 1.0, dy, self.values(&columns).t());
        let mut dropped = vec![0.0; rows.len() * width];
        let mut factors = vec![1.0; width];
        for r in 0..rows.len() {
            let at = r * width..(r + 1) * width;
            let (Some(p), Some(dp), Some(kept)) =
                (scores.get_mut(at.clone()), dp.get_mut(at.clone()), dropped.get_mut(at))
            else {
                continue;
            };
            let row = saved.rows.get(self.head * saved.n + first + r);
            let row = row.copied().unwrap_or(SoftmaxRow::EMPTY);
            let d = row_dot(saved, first + r, shape, self.head);
            if let Some(dropout) = self.of.dropout {
                self.factors(dropout, rows.start + r, columns.start, &mut factors);
            }
            for (((p, dp), kept), f) in p.iter_mut().zip(dp).zip(kept).zip(&factors) {
                let probability = row.probability(*p);
                *kept = probability * f;
                *p = probability;
                *dp = probability * (*dp * f - d);
            }
        }
        if !dbias.is_empty() {
            self.add_bias_gradient(rows, &columns, &dp, dbias);
        }
        if let Some((_, slopes)) = capped {
            dp.iter_mut().zip(slopes).for_each(|(g, slope)| *g *= slope);
        }
        let ds = View::new(&dp, rows.len(), width);
        let scale = shape.scale;
        let to = dq.get_mut(rows.start * shape.head_dim..).unwrap_or_default();
        product(&mut Target::new(to, shape.head_dim), false, scale, ds, self.keys(&columns));
        let to = sum.k.get_mut(columns.start * shape.head_dim..).unwrap_or_default();
        product(&mut Target::new(to, shape.head_dim), true, scale, ds.t(), self.queries(rows));
        let to = sum.v.get_mut(columns.start * shape.value_dim..).unwrap_or_default();
        let kept = View::new(&dropped, rows.len(), width);
        product(&mut Target::new(to, shape.value_dim), true, 1.0, kept.t(), dy);
    }

    /// Derivative of `cap·tanh(s/cap)` at the uncapped scores.
    fn cap_slopes(&self, rows: &Range<usize>, columns: &Range<usize>, cap: f32) -> Vec<f32> {
        let mut raw = vec![0.0; rows.len() * columns.len()];
        let (q, k) = (self.queries(rows), self.keys(columns));
        product(&mut Target::new(&mut raw, columns.len()), false, self.of.shape.scale, q, k.t());
        raw.iter_mut().for_each(|s| *s = 1.0 - (*s / cap).tanh().powi(2));
        raw
    }

    fn add_bias_gradient(
        &self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        ds: &[f32],
        dbias: &mut [f32],
    ) {
        let middle = dbias.len() / 2;
        for (r, ds) in ds.chunks_exact(columns.len()).enumerate() {
            for (c, g) in ds.iter().enumerate() {
                let at =
                    (middle + columns.start + c).saturating_sub(self.span.offset + rows.start + r);
                if let Some(to) = dbias.get_mut(at) {
                    *to += g;
                }
            }
        }
    }
}

/// `Σ dy·y` over one head of one row.
fn row_dot(saved: Saved<'_>, row: usize, shape: &AttentionShape, head: usize) -> f32 {
    let dim = shape.value_dim;
    let start = (row * shape.heads + head) * dim;
    let of = |x: &'_ [f32]| x.get(start..start + dim).unwrap_or_default().to_vec();
    of(saved.dy).iter().zip(of(saved.output)).map(|(a, b)| a * b).sum()
}
