//! Picking rows and columns.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};

use super::{data, places};
use crate::{Result, Value};

/// [`crate::ops::select_rows`].
pub(crate) fn select_rows(x: &Value, rows: &Arc<[usize]>, device: &Device) -> Result<Value> {
    let (n, d) = x.data().dims2()?;
    let zeros = move |rows: usize, device: &Device| Tensor::zeros((rows, d), DType::F32, device);
    // A GPU has no empty tensors.
    let empty = rows.is_empty();
    let rows = places(if empty { &Device::Cpu } else { device }, rows.iter().copied())?;
    let y = match empty {
        true => zeros(0, &Device::Cpu)?,
        false => data(device, x)?.index_select(&rows, 0)?,
    };
    let device = device.clone();
    Ok(Value::record("select_rows", y, [x], |_| {
        move |dy: Tensor| {
            let dx = zeros(n, &device)?;
            Ok([Some(if empty { dx } else { dx.index_add(&rows, &dy.contiguous()?, 0)? })])
        }
    }))
}

/// [`crate::ops::columns`].
pub(crate) fn columns(x: &Value, range: &Range<usize>, device: &Device) -> Result<Value> {
    let y = data(device, x)?.narrow(1, range.start, range.len())?.contiguous()?;
    let (before, after) = (range.start, x.data().dim(1)? - range.end);
    Ok(Value::record("columns", y, [x], |_| {
        move |dy: Tensor| Ok([Some(dy.pad_with_zeros(1, before, after)?)])
    }))
}
