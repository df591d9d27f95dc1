//! Softmax cross-entropy, summed: `L = Σ log Σ exp(z) - z[target]`, `dz = softmax(z) - onehot`.
//! The logits are saved; rows without a target must be left out by the caller.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    Error, Result, Value,
    kernels::{F32, dims2, tensor},
};

const OP: &str = "cross_entropy";

/// `logits` `[n, classes]` and one target for each row; returns the sum over the rows, a scalar.
///
/// # Errors
/// [`Error::Index`] for a target outside the classes; [`Error::Shape`] when the counts differ.
pub fn cross_entropy(logits: &Value, targets: &Arc<[u32]>) -> Result<Value> {
    let (n, classes) = dims2(OP, "the logits", logits.data())?;
    if targets.len() != n {
        let (what, found) = ("the logits", logits.dims().to_vec());
        return Err(Error::Shape {
            op: OP,
            what,
            found,
            must_be: format!("{} rows", targets.len()),
        });
    }
    if let Some(place) = targets.iter().position(|&t| t as usize >= classes) {
        let index = targets.get(place).map_or(0, |&t| t as usize);
        return Err(Error::Index { op: OP, index, place, len: classes });
    }
    let data = logits.data().contiguous()?;
    let losses: Vec<f64> = {
        let z = F32::of(OP, &data)?;
        z.par_chunks(classes.max(1))
            .zip(targets.par_iter())
            .map(|(z, &t)| {
                let (max, sum) = exponentials(z);
                let below = z.get(t as usize).map_or(0.0, |&v| f64::from(max) - f64::from(v));
                below + sum.ln()
            })
            .collect()
    };
    let sum = losses.iter().sum::<f64>() as f32;
    let targets = Arc::clone(targets);
    Ok(Value::record(OP, tensor(vec![sum], &[])?, [logits], |_| {
        move |dy: Tensor| {
            let scale = dy.to_scalar::<f32>()?;
            let z = F32::of(OP, &data)?;
            let mut dz = vec![0.0; z.len()];
            dz.par_chunks_mut(classes.max(1))
                .zip(z.par_chunks(classes.max(1)).zip(targets.par_iter()))
                .for_each(|(dz, (z, &t))| {
                    let (max, sum) = exponentials(z);
                    let factor = (f64::from(scale) / sum) as f32;
                    dz.iter_mut().zip(z).for_each(|(d, z)| *d = factor * (z - max).exp());
                    if let Some(d) = dz.get_mut(t as usize) {
                        *d -= scale;
                    }
                });
            Ok([Some(tensor(dz, &[n, classes])?)])
        }
    }))
}

/// The largest element `m` and `Σ exp(z - m)`. Their logarithms aren't added up: beside a large `m`
/// the sum would be lost.
fn exponentials(z: &[f32]) -> (f32, f64) {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, z.iter().map(|v| f64::from((v - max).exp())).sum())
}
