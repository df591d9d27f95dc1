//! Rotary position embedding.

use std::ops::Range;

use candle_core::{D, Device, Tensor};

use super::{floats, wide};
use crate::{
    Result, Value,
    ops::{Angles, RotaryStyle},
};

/// [`crate::ops::rotary_from`].
pub(crate) fn rotary(
    x: &Value,
    head_dim: usize,
    first: usize,
    angles: &Angles,
    style: RotaryStyle,
    device: &Device,
) -> Result<Value> {
    let [cos, sin] = angles.on(device)?;
    let turn = move |x: &Tensor, sign| turn(x, head_dim, first, [&cos, &sin], style, sign);
    let y = turn(&floats(device, x)?, 1.0)?;
    Ok(Value::record("rotary", y, [x], |_| {
        move |dy: Tensor| Ok([Some(turn(&dy.contiguous()?, -1.0)?)])
    }))
}

/// Turns every head of `x` from element `first` on by angles `[n, half]`, or back if `sign` is -1; in
/// the dtype of `x`.
fn turn(
    x: &Tensor,
    head_dim: usize,
    first: usize,
    [cos, sin]: [&Tensor; 2],
    style: RotaryStyle,
    sign: f32,
) -> Result<Tensor> {
    on_gpu!(x, rotary(x, [cos, sin], head_dim, first, style, sign));
    let ((n, width), half) = (x.dims2()?, cos.dim(1)?);
    let (heads, turned) = (width / head_dim, first..first + 2 * half);
    let (cos, sin) = (cos.unsqueeze(1)?, (sin.unsqueeze(1)? * f64::from(sign))?);
    let (dtype, x) = (x.dtype(), wide(x)?.reshape((n, heads, head_dim))?);
    let part = |range: Range<usize>| x.narrow(D::Minus1, range.start, range.len());
    let middle = part(turned.clone())?;
    let (a, b) = match style {
        RotaryStyle::Halves => (middle.narrow(2, 0, half)?, middle.narrow(2, half, half)?),
        RotaryStyle::Pairs => {
            let pairs = middle.contiguous()?.reshape((n, heads, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let one = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let other = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let mut parts = match style {
        RotaryStyle::Halves => vec![one, other],
        RotaryStyle::Pairs => vec![Tensor::stack(&[one, other], 3)?.flatten_from(2)?],
    };
    if turned.start > 0 {
        parts.insert(0, part(0..turned.start)?.contiguous()?);
    }
    if turned.end < head_dim {
        parts.push(part(turned.end..head_dim)?.contiguous()?);
    }
    Ok(Tensor::cat(&parts, D::Minus1)?.reshape((n, width))?.to_dtype(dtype)?)
}
