//! Dropout and noise by the factors that the processor draws.

use candle_core::{Device, Tensor};

use super::{data, masked};
use crate::{Dropout, Jitter, Result, Value};

/// [`crate::ops::dropout`].
pub(crate) fn dropout(x: &Value, mask: &Dropout, device: &Device) -> Result<Value> {
    let y = masked(&data(device, x)?, Some(mask))?;
    let mask = mask.clone();
    Ok(Value::record("dropout", y, [x], |_| {
        move |dy: Tensor| Ok([Some(masked(&dy, Some(&mask))?)])
    }))
}

/// [`crate::ops::jitter`].
pub(crate) fn jitter(x: &Value, noise: &Jitter, device: &Device) -> Result<Value> {
    let x_data = data(device, x)?;
    let (rows, columns) = x_data.dims2()?;
    let mut factors = vec![0.0; rows * columns];
    let by_row = factors.chunks_exact_mut(columns.max(1)).enumerate();
    by_row.for_each(|(row, factors)| noise.factors(row, factors));
    let factors = Tensor::from_vec(factors, (rows, columns), device)?;
    let y = (x_data * &factors)?;
    Ok(Value::record("jitter", y, [x], |_| move |dy: Tensor| Ok([Some((dy * factors)?)])))
}
