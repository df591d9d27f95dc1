//! Rotary position embedding (arXiv:2104.09864).

use candle_core::{D, Tensor};

use crate::{
    Result,
    ops::{Angles, RotaryStyle},
};

/// Rotates the first `2·half` elements of every head of `x` `[n, heads·head_dim]` by `angles`
/// (`[n, half]` each).
///
/// # Errors
/// Shapes that don't fit each other.
pub fn rotary(x: &Tensor, head_dim: usize, angles: &Angles, style: RotaryStyle) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let (_, half) = angles.cos.dims2()?;
    let heads = x.reshape((n, width / head_dim, head_dim))?;
    let turned = heads.narrow(D::Minus1, 0, 2 * half)?;
    let rest = heads.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?;
    let (a, b) = match style {
        RotaryStyle::Halves => {
            (turned.narrow(D::Minus1, 0, half)?, turned.narrow(D::Minus1, half, half)?)
        }
        RotaryStyle::Pairs => {
            let pairs = turned.reshape((n, width / head_dim, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let cos = angles.cos.to_dtype(x.dtype())?.unsqueeze(1)?;
    let sin = angles.sin.to_dtype(x.dtype())?.unsqueeze(1)?;
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = match style {
        RotaryStyle::Halves => Tensor::cat(&[first, second], D::Minus1)?,
        RotaryStyle::Pairs => Tensor::stack(&[first, second], D::Minus1)?.flatten_from(2)?,
    };
    Ok(Tensor::cat(&[turned, rest], D::Minus1)?.reshape((n, width))?)
}
