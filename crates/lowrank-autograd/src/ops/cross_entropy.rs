//! Softmax cross-entropy, summed: `L = Σ log Σ exp(z) - z[target]`, `dz = softmax(z) - onehot`.
//! The gradient for a sum is made with it and is all that is saved; rows without a target must be
//! left out by the caller.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    Error, Result, Value, composed,
    kernels::{
        F32,
        cross_entropy::{Row, scale},
        dims2,
        elementwise::scale_assign,
        tensor,
    },
    profile,
};

const OP: &str = "cross_entropy";

/// A sum of cross-entropies, and how many rows have their largest logit at the target.
#[derive(Clone, Debug)]
pub struct ScoredTargets {
    /// The sum, a scalar.
    pub sum: Value,
    /// Rows whose largest logit, the first among equals, is the target's.
    pub correct: usize,
}

/// `logits` `[n, classes]` and one target for each row; returns the sum over the rows, a scalar.
///
/// # Errors
/// [`Error::Index`] for a target outside the classes; [`Error::Shape`] when the counts differ.
pub fn cross_entropy(logits: &Value, targets: &Arc<[u32]>) -> Result<Value> {
    scored_cross_entropy(logits, targets).map(|scored| scored.sum)
}

/// [`cross_entropy`] that counts hits too.
///
/// # Errors
/// As [`cross_entropy`].
pub fn scored_cross_entropy(logits: &Value, targets: &Arc<[u32]>) -> Result<ScoredTargets> {
    let _time = profile::scope(OP);
    let (n, classes) = dims2(OP, "the logits", logits.data())?;
    if targets.len() != n {
        let (what, found) = ("the logits", logits.dims().to_vec());
        let must_be = format!("{} rows", targets.len());
        return Err(Error::Shape { op: OP, what, found, must_be });
    }
    check_targets(OP, targets, classes)?;
    if let Some(device) = composed::device([logits.data()]) {
        return composed::scored_cross_entropy(logits, targets, &device);
    }
    let data = logits.data().contiguous()?;
    let mut dz = F32::of(OP, &data)?.to_vec();
    let rows: Vec<Row> = dz
        .par_chunks_mut(classes.max(1))
        .zip(targets.par_iter())
        .map(|(dz, &target)| {
            let target = target as usize;
            let mut row = Row::new();
            row.absorb(dz, 0, target);
            if logits.needs_gradient() {
                scale(dz, row.factor());
                if let Some(d) = dz.get_mut(target) {
                    *d = row.target_gradient(None);
                }
            }
            row
        })
        .collect();
    let loss = tensor(vec![sum(&rows) as f32], &[])?;
    let dz = logits.needs_gradient().then(|| tensor(dz, &[n, classes])).transpose()?;
    Ok(ScoredTargets { sum: record(OP, loss, logits, dz), correct: correct(&rows) })
}

/// The loss as a result of `parent`, whose gradient for a seed of 1 is known.
pub(super) fn record(
    op: &'static str,
    loss: Tensor,
    parent: &Value,
    gradient: Option<Tensor>,
) -> Value {
    Value::record(op, loss, [parent], |_| {
        move |dy: Tensor| {
            let factor = dy.to_scalar::<f32>()?;
            // Nobody else has seen this tensor, so that it may be changed in place.
            gradient.as_ref().map_or(Ok(()), |gradient| scale_assign(gradient, factor))?;
            Ok([gradient])
        }
    })
}

pub(super) fn sum(rows: &[Row]) -> f64 {
    rows.iter().map(Row::loss).sum()
}

pub(super) fn correct(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.hit()).count()
}

/// An error unless every target is one of the classes.
pub(super) fn check_targets(op: &'static str, targets: &[u32], classes: usize) -> Result<()> {
    match targets.iter().enumerate().find(|(_, target)| **target as usize >= classes) {
        Some((place, &target)) => {
            Err(Error::Index { op, index: target as usize, place, len: classes })
        }
        None => Ok(()),
    }
}
