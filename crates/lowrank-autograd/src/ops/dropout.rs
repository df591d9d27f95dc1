//! Dropout (arXiv:1207.0580): `y = m·x`, `dx = m·dy`, where the mask `m` is computed anew from
//! its key.

use candle_core::Tensor;

use crate::{
    Dropout, Result, Value, composed,
    kernels::{F32, dims2, tensor},
    profile,
};

/// Drops elements of `x` `[n, d]`; without a mask, `x` itself.
///
/// # Errors
/// When `x` isn't a matrix of f32 or bf16, or the mask has fewer rows.
pub fn dropout(x: &Value, mask: Option<&Dropout>) -> Result<Value> {
    let _time = profile::scope("dropout");
    let Some(mask) = mask else { return Ok(x.clone()) };
    let (n, _) = dims2("dropout", "the input", x.data())?;
    mask.check("dropout", n)?;
    if let Some(device) = composed::device([x.data()]) {
        return composed::dropout(x, mask, &device);
    }
    let y = masked(x.data(), mask)?;
    let mask = mask.clone();
    Ok(Value::record("dropout", y, [x], |_| move |dy: Tensor| Ok([Some(masked(&dy, &mask)?)])))
}

fn masked(x: &Tensor, mask: &Dropout) -> Result<Tensor> {
    let (n, d) = dims2("dropout", "the input", x)?;
    let x = x.contiguous()?;
    tensor(mask.apply(&F32::of("dropout", &x)?, d), &[n, d])
}
