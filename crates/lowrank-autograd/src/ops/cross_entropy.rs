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
            .map(|(z, &t)| log_sum_exp(z) - z.get(t as usize).map_or(0.0, |&v| f64::from(v)))
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
                    let log_sum = log_sum_exp(z) as f32;
                    dz.iter_mut().zip(z).for_each(|(d, z)| *d = scale * (z - log_sum).exp());
                    if let Some(d) = dz.get_mut(t as usize) {
                        *d -= scale;
                    }
                });
            Ok([Some(tensor(dz, &[n, classes])?)])
        }
    }))
}

/// `log Σ exp(z)`, stable for any finite input.
fn log_sum_exp(z: &[f32]) -> f64 {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = z.iter().map(|v| f64::from((v - max).exp())).sum();
    f64::from(max) + sum.ln()
}
