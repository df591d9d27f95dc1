//! Matrices side by side.

use candle_core::{Device, Tensor};

use super::data;
use crate::{Result, Value};

/// [`crate::ops::join_columns`].
pub(crate) fn join_columns(parts: &[Value], widths: Vec<usize>, device: &Device) -> Result<Value> {
    let tensors = parts.iter().map(|part| data(device, part)).collect::<Result<Vec<_>>>()?;
    let y = Tensor::cat(&tensors, 1)?;
    let parents: Vec<&Value> = parts.iter().collect();
    Ok(Value::record_many("join_columns", y, &parents, |needs| {
        let needs = needs.to_vec();
        move |dy: Tensor| {
            let mut start = 0;
            let part = |(&width, needed): (&usize, bool)| {
                start += width;
                needed.then(|| Ok(dy.narrow(1, start - width, width)?.contiguous()?)).transpose()
            };
            widths.iter().zip(needs).map(part).collect()
        }
    }))
}
