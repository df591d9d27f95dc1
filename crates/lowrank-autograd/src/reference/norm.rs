//! RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450).

use candle_core::{D, Tensor};

use crate::Result;

/// `w·x/√(mean(x²)+ε)` for `x` `[n, d]`, `weight` `[d]`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?)
}

/// `w·(x-mean)/√(var+ε) + b` for `x` `[n, d]`, `weight` and `bias` `[d]`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let y = rms_norm(&centred, weight, eps)?;
    Ok(bias.map_or(Ok(y.clone()), |b| y.broadcast_add(b))?)
}
