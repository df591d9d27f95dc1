//! Losses of regression and of several labels at once.

use candle_core::{DType, Device, Tensor};

use super::{data, filled, on, sigmoid, total};
use crate::{Result, Value};

/// [`crate::ops::squared_error`].
pub(crate) fn squared_error(x: &Value, targets: &Tensor, device: &Device) -> Result<Value> {
    let difference = (data(device, x)? - on(device, targets)?)?;
    let loss = difference.sqr()?;
    summed("squared_error", x, &loss, move || Ok((difference * 2.0)?))
}

/// [`crate::ops::binary_cross_entropy`].
pub(crate) fn binary_cross_entropy(x: &Value, targets: &Tensor, device: &Device) -> Result<Value> {
    let (z, t) = (data(device, x)?, on(device, targets)?);
    let tail = (z.abs()?.neg()?.exp()? + 1.0)?.log()?;
    let loss = ((filled(&z, &z.lt(0.0)?, 0.0)? - (&z * &t)?)? + tail)?;
    summed("binary_cross_entropy", x, &loss, move || Ok((sigmoid(&z)? - t)?))
}

/// The sum of `losses`, whose derivatives are `slopes`.
fn summed(
    op: &'static str,
    x: &Value,
    losses: &Tensor,
    slopes: impl FnOnce() -> Result<Tensor> + Send + 'static,
) -> Result<Value> {
    let y = total(losses)?.to_dtype(DType::F32)?;
    Ok(Value::record(op, y, [x], |_| move |dy: Tensor| Ok([Some(slopes()?.broadcast_mul(&dy)?)])))
}
