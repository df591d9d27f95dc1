//! Operations on few numbers, the logits of routers, which kernels compute of copies in the
//! processor's memory: where tokens go has to be known there, as that is where they are sorted.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{by_kernels, on};
use crate::{
    Gradients, Parameter, Result, Value,
    ops::{self, Routing},
};

/// [`crate::ops::route`].
pub(crate) fn route(
    logits: &Value,
    routing: &Routing,
    device: &Device,
) -> Result<(Value, Arc<[usize]>)> {
    of_copy("route", logits, device, |logits| ops::route(logits, routing))
}

/// [`crate::ops::balance`].
pub(crate) fn balance(logits: &Value, chosen: usize, device: &Device) -> Result<Value> {
    let run = |logits: &Value| Ok((ops::balance(logits, chosen)?, ()));
    of_copy("balance", logits, device, run).map(|(loss, ())| loss)
}

/// What `run` makes of a copy of `x`; its backward pass is that of the copy.
fn of_copy<R>(
    op: &'static str,
    x: &Value,
    device: &Device,
    run: impl FnOnce(&Value) -> Result<(Value, R)>,
) -> Result<(Value, R)> {
    let copy = Parameter::new(op, &x.data().to_device(&Device::Cpu)?)?;
    let local = copy.value(x.needs_gradient());
    let (found, rest) = by_kernels(|| run(&local))?;
    let result = on(device, found.data())?;
    let device = device.clone();
    let value = Value::record(op, result, [x], |_| {
        move |dy: Tensor| {
            let dy = Value::constant(dy.to_device(&Device::Cpu)?);
            let mut gradients = Gradients::new();
            by_kernels(|| ops::sum_all(&ops::mul(&found, &dy)?)?.backward(1.0, &mut gradients))?;
            Ok([gradients.get(copy.id()).map(|dx| on(&device, dx)).transpose()?])
        }
    });
    Ok((value, rest))
}
