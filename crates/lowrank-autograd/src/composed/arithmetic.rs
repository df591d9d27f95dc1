//! Sums, products and their like.

use candle_core::{DType, Device, Tensor};

use super::{data, filled, floats, on, total, wide};
use crate::{Result, Value};

/// `a + b` in f32.
pub(crate) fn added(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let b = on(a.device(), b)?;
    on_gpu!(a, added(&a.contiguous()?, &b));
    Ok((wide(a)? + wide(&b)?)?)
}

/// `factor·x`.
pub(crate) fn scaled(x: &Tensor, factor: f32) -> Result<Tensor> {
    Ok((x * f64::from(factor))?)
}

/// The sum of the squares of all elements of tensors on one device, added up in f64.
pub(crate) fn square_sum(tensors: &[&Tensor]) -> Result<f64> {
    if tensors.is_empty() {
        return Ok(0.0);
    }
    on_gpu!(tensors[0], square_sum(tensors));
    let one = |x: &&Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    Ok(tensors.iter().map(one).sum::<candle_core::Result<f64>>()?)
}

/// [`crate::ops::add`].
pub(crate) fn add(a: &Value, b: &Value, device: &Device) -> Result<Value> {
    let y = added(&floats(device, a)?, &floats(device, b)?)?;
    Ok(Value::record("add", y, [a, b], |_| |dy: Tensor| Ok([Some(dy.clone()), Some(dy)])))
}

/// [`crate::ops::add_row`].
pub(crate) fn add_row(x: &Value, row: &Value, device: &Device) -> Result<Value> {
    let shape = row.dims().to_vec();
    let y = data(device, x)?.broadcast_add(&data(device, row)?)?;
    Ok(Value::record("add_row", y, [x, row], |[_, need_row]| {
        move |dy: Tensor| {
            let drow = need_row.then(|| dy.sum(0)?.reshape(shape)).transpose()?;
            Ok([Some(dy), drow])
        }
    }))
}

/// [`crate::ops::mul`].
pub(crate) fn mul(a: &Value, b: &Value, device: &Device) -> Result<Value> {
    let (a_data, b_data) = (data(device, a)?, data(device, b)?);
    let y = (&a_data * &b_data)?;
    Ok(Value::record("mul", y, [a, b], |[need_a, need_b]| {
        let b = need_a.then_some(b_data);
        let a = need_b.then_some(a_data);
        move |dy: Tensor| Ok([b.map(|b| &dy * b).transpose()?, a.map(|a| &dy * a).transpose()?])
    }))
}

/// [`crate::ops::scale`].
pub(crate) fn scale(x: &Value, factor: f32, device: &Device) -> Result<Value> {
    let y = scaled(&data(device, x)?, factor)?;
    Ok(Value::record("scale", y, [x], |_| move |dy: Tensor| Ok([Some(scaled(&dy, factor)?)])))
}

/// [`crate::ops::shift`].
pub(crate) fn shift(x: &Value, offset: f32, device: &Device) -> Result<Value> {
    let y = (data(device, x)? + f64::from(offset))?;
    Ok(Value::record("shift", y, [x], |_| |dy: Tensor| Ok([Some(dy)])))
}

/// [`crate::ops::clip`].
pub(crate) fn clip(x: &Value, limit: f32, device: &Device) -> Result<Value> {
    let x_data = data(device, x)?;
    let (above, below) = (x_data.gt(limit)?, x_data.lt(-limit)?);
    let y = filled(&filled(&x_data, &above, limit)?, &below, -limit)?;
    Ok(Value::record("clip", y, [x], |_| {
        move |dy: Tensor| {
            let within = x_data.abs()?.le(limit)?.to_dtype(DType::F32)?;
            Ok([Some((dy * within)?)])
        }
    }))
}

/// [`crate::ops::sum_all`].
pub(crate) fn sum_all(x: &Value, device: &Device) -> Result<Value> {
    let shape = x.dims().to_vec();
    let y = total(&data(device, x)?)?.to_dtype(DType::F32)?;
    Ok(Value::record("sum_all", y, [x], |_| {
        move |dy: Tensor| Ok([Some(dy.broadcast_as(shape)?.contiguous()?)])
    }))
}
