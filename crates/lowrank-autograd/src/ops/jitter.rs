//! Multiplicative noise: `y = u·x`, `dx = u·dy`, where every `u` is uniform in `[1 - a, 1 + a)` and
//! is computed anew from its key, as a mask of dropout is.

use candle_core::Tensor;

use crate::{
    Jitter, Result, Value, composed,
    kernels::{F32, dims2, rows::gather, tensor},
    profile,
};

const OP: &str = "jitter";

/// Multiplies `x` `[n, d]` by noise; without any, `x` itself.
///
/// # Errors
/// When `x` isn't a matrix of f32 or bf16, or the noise has fewer rows.
pub fn jitter(x: &Value, noise: Option<&Jitter>) -> Result<Value> {
    let _time = profile::scope(OP);
    let Some(noise) = noise else { return Ok(x.clone()) };
    let (n, _) = dims2(OP, "the input", x.data())?;
    noise.check(OP, n)?;
    if let Some(device) = composed::device([x.data()]) {
        return composed::jitter(x, noise, &device);
    }
    let y = multiplied(x.data(), noise)?;
    let noise = noise.clone();
    Ok(Value::record(OP, y, [x], |_| move |dy: Tensor| Ok([Some(multiplied(&dy, &noise)?)])))
}

fn multiplied(x: &Tensor, noise: &Jitter) -> Result<Tensor> {
    let (n, d) = dims2(OP, "the input", x)?;
    let x = x.contiguous()?;
    let x = F32::of(OP, &x)?;
    let y = gather(n, d, |row, y| {
        noise.factors(row, y);
        y.iter_mut().zip(&x[row * d..][..d]).for_each(|(y, x)| *y *= x);
    });
    tensor(y, &[n, d])
}
