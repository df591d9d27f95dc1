//! The last linear layer of a language model and softmax cross-entropy in one, without the matrix
//! of all logits (the aim of arXiv:2410.10989 and arXiv:2411.09009):
//! `z = x·Wᵀ + b`, `L = Σ log Σ exp(z) - z[target]`, `dx = (softmax(z) - onehot)·W`, W frozen.
//! With a cap `c` (arXiv:2408.00118) `z` is `s = c·tanh(z/c)`, and each class's term of `dx` has the
//! factor `1 - (s/c)²`.
//!
//! Logits are made for a block of rows by a panel of classes at a time. `softmax(z)·W` is attention
//! whose keys and values are both `W`, and is summed up as flash attention (arXiv:2205.14135) does:
//! relative to the largest logit so far, rescaled when a panel brings a larger one. So logits are
//! computed once, and a panel of `W` is read for `x·Wᵀ` and again, while it is near, for `dx`. The
//! target's column goes in at the end, from its exact probability less 1.
//!
//! A block of `R` rows and `P` classes costs `4·R·P·hidden` operations, reads `2·P·hidden` weights
//! and passes over `3·R·hidden` numbers of `dx`: traffic falls with `1/R + 3/P`, scratch grows with
//! `R·P`. Rows alone (`P` = all classes) would need as much scratch as they save, or read the whole
//! matrix for a few rows; two passes over panels, without rescaling, half the arithmetic again.
//!
//! The loss is a sum, so that `backward` brings one number: the gradient for 1 is made in the
//! forward pass, if `x` needs any, and multiplied by that number. Only it is saved.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    Result, Value, Weight, composed,
    elements::Elements,
    kernels::{
        F32, Floats, check_dims,
        cross_entropy::{Row, add, cap, multiply, scale, scale_and_add},
        dims2,
        product::{self, Linear, View},
        tensor,
    },
    profile,
    weight::Matrix,
};

use super::cross_entropy::{ScoredTargets, check_targets, correct, record, sum};

const OP: &str = "linear_cross_entropy";

/// Most logits at a time: 8 MB of f32.
const LOGITS: usize = 1 << 21;
/// Most rows of a block; with as many, weights are read rarely enough to count for little.
const ROWS: usize = 512;
/// Most classes of a panel: what it takes of `W` should stay in cache until `dx` has used it.
const CLASSES: usize = 4096;

/// `x` `[n, hidden]`, a frozen `weight` `[classes, hidden]`, `bias` `[classes]` and one target for
/// each row. `softcap` is the positive number that logits stay below.
///
/// # Errors
/// [`crate::Error::Index`] for a target outside the classes; [`crate::Error::Shape`] for what
/// doesn't fit.
pub fn linear_cross_entropy(
    x: &Value,
    weight: &Weight,
    bias: Option<&Tensor>,
    softcap: Option<f32>,
    targets: &Arc<[u32]>,
) -> Result<ScoredTargets> {
    let _time = profile::scope(OP);
    let memory = weight.matrix(OP)?;
    let (n, hidden) = (targets.len(), memory.columns);
    dims2(OP, "the input", x.data())?;
    check_dims(OP, "the input", x.data(), &[n, hidden])?;
    check_targets(OP, targets, memory.rows)?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    bias.as_ref().map_or(Ok(()), |b| check_dims(OP, "the bias", b, &[memory.rows]))?;
    if let Some(device) = composed::device_with(weight, [x.data()]) {
        let bias = bias.as_ref();
        return composed::linear_cross_entropy(x, weight, bias, softcap, targets, &device);
    }
    let data = x.data().contiguous()?;
    let bias = bias.as_ref().map(|b| F32::of(OP, b)).transpose()?;
    let read = Floats::of(OP, &data)?;
    let layer = Layer { x: read.elements(), weight, memory, bias: bias.as_deref(), softcap };

    let needed = x.needs_gradient();
    let mut dx = Vec::with_capacity(if needed { n * hidden } else { 0 });
    let mut rows = Vec::with_capacity(n);
    for start in (0..n).step_by(ROWS) {
        let block = start..n.min(start + ROWS);
        let targets = targets.get(block.clone()).unwrap_or_default();
        rows.extend(layer.block(block, targets, needed.then_some(&mut dx))?);
    }
    let loss = tensor(vec![sum(&rows) as f32], &[])?;
    let dx = needed.then(|| tensor(dx, &[n, hidden])).transpose()?;
    Ok(ScoredTargets { sum: record(OP, loss, x, dx), correct: correct(&rows) })
}

struct Layer<'a> {
    x: Elements<'a>,
    weight: &'a Weight,
    memory: Matrix,
    bias: Option<&'a [f32]>,
    softcap: Option<f32>,
}

impl Layer<'_> {
    /// The softmax of each row of a block; the rows' gradients are put behind `dx`.
    fn block(
        &self,
        block: Range<usize>,
        targets: &[u32],
        mut dx: Option<&mut Vec<f32>>,
    ) -> Result<Vec<Row>> {
        let (n, hidden) = (block.len(), self.memory.columns);
        let x = self.x.slice(block.start * hidden..block.end * hidden);
        let x = View::over(x, n, hidden);
        let done = dx.as_ref().map_or(0, |dx| dx.len());
        let mut rows = vec![Row::new(); n];
        for (panel, weight) in self.panels(n)? {
            let of = Linear { x, weight: &weight, bias: None, terms: &[] };
            let mut z = product::linear(of, false)?.wide();
            let factors = self.absorb(&mut rows, targets, &mut z, panel.clone());
            let Some(dx) = dx.as_deref_mut() else { continue };
            let of = Linear { x: View::new(&z, n, panel.len()), ..of };
            let part = product::linear_input_gradient(of, false)?.wide();
            match dx.get_mut(done..).filter(|so_far| !so_far.is_empty()) {
                Some(so_far) => so_far
                    .par_chunks_mut(hidden.max(1))
                    .zip(part.par_chunks(hidden.max(1)).zip(&factors))
                    .for_each(|(to, (from, factor))| scale_and_add(to, *factor, from)),
                None => dx.extend_from_slice(&part),
            }
        }
        if let Some(dx) = dx.and_then(|dx| dx.get_mut(done..)) {
            self.weight.with_elements(|elements| {
                dx.par_chunks_mut(hidden.max(1)).zip(rows.par_iter().zip(targets)).for_each(
                    |(dx, (row, &target))| {
                        scale(dx, row.factor());
                        let gradient = row.target_gradient(self.softcap);
                        add_row(dx, gradient, elements, self.memory, target as usize);
                    },
                );
            })?;
        }
        Ok(rows)
    }

    /// Ranges of classes of nearly one size for `n` rows, and the weights of each. One that lies
    /// transposed in memory isn't cut.
    fn panels(&self, n: usize) -> Result<Vec<(Range<usize>, Weight)>> {
        let classes = self.memory.rows;
        if self.weight.is_transposed() {
            return Ok(vec![(0..classes, self.weight.clone())]);
        }
        let most = (LOGITS / n.max(1)).min(CLASSES);
        let panels = classes.div_ceil(most).max(1);
        // Whole tiles of every kernel, so that only the last panel has an edge.
        let size = classes.div_ceil(panels).next_multiple_of(64);
        let ranges = (0..classes).step_by(size).map(|first| first..classes.min(first + size));
        ranges.map(|range| Ok((range.clone(), self.weight.rows(range)?))).collect()
    }

    /// Adds a panel's logits to the rows' softmax and leaves their factors of `W` in `z`; returns the
    /// factors of what is summed up so far.
    fn absorb(
        &self,
        rows: &mut [Row],
        targets: &[u32],
        z: &mut [f32],
        panel: Range<usize>,
    ) -> Vec<f32> {
        let bias = self.bias.and_then(|bias| bias.get(panel.clone()));
        z.par_chunks_mut(panel.len().max(1))
            .zip(rows.par_iter_mut().zip(targets))
            .map(|(z, (row, &target))| {
                if let Some(bias) = bias {
                    add(z, bias);
                }
                let target = target as usize;
                let Some(softcap) = self.softcap else {
                    return row.absorb(z, panel.start, target);
                };
                let mut slopes = vec![0.0; z.len()];
                cap(z, &mut slopes, softcap);
                let factor = row.absorb(z, panel.start, target);
                multiply(z, &slopes);
                factor
            })
            .collect()
    }
}

/// `to += factor·W[row]`.
fn add_row(to: &mut [f32], factor: f32, elements: Elements<'_>, memory: Matrix, row: usize) {
    let places =
        (0..memory.columns).map(|column| row * memory.row_stride + column * memory.column_stride);
    for (to, place) in to.iter_mut().zip(places) {
        let weight = match elements {
            Elements::F32(w) => w.get(place).copied(),
            Elements::Bf16(w) => w.get(place).map(|v| v.to_f32()),
            Elements::F16(w) => w.get(place).map(|v| v.to_f32()),
        };
        *to += factor * weight.unwrap_or_default();
    }
}
