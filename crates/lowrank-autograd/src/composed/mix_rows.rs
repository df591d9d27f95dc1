//! Weighted sums of rows.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{data, places};
use crate::{Result, Value, kept::Kept};

/// [`crate::ops::mix_rows`]; `back` is the inverse of `order`.
pub(crate) fn mix_rows(
    x: &Value,
    weights: &Value,
    order: &Arc<[usize]>,
    back: Vec<usize>,
    device: &Device,
) -> Result<Value> {
    let (x_data, w) = (data(device, x)?, data(device, weights)?);
    let ((m, d), (n, k)) = (x_data.dims2()?, w.dims2()?);
    let order = places(device, order.iter().copied())?;
    let sorted = move |x: &Tensor, order: &Tensor| -> Result<Tensor> {
        Ok(x.index_select(order, 0)?.reshape((n, k, d))?)
    };
    let y = sorted(&x_data, &order)?.broadcast_mul(&w.unsqueeze(2)?)?.sum(1)?;
    Ok(Value::record("mix_rows", y, [x, weights], |[need_x, need_w]| {
        let kept = need_w.then(|| Kept::composed(x, &x_data));
        move |dy: Tensor| {
            let dy = dy.reshape((n, 1, d))?;
            let dx = match need_x {
                true => {
                    let parts = dy.broadcast_mul(&w.unsqueeze(2)?)?.reshape((m, d))?;
                    Some(parts.index_select(&places(dy.device(), back)?, 0)?)
                }
                false => None,
            };
            let dw = kept.map(|kept| -> Result<Tensor> {
                Ok(sorted(&kept.tensor()?, &order)?.broadcast_mul(&dy)?.sum(2)?)
            });
            Ok([dx, dw.transpose()?])
        }
    }))
}
