//! Activation functions and gated units.

use candle_core::{DType, Device, Tensor};

use super::{data, filled, floats, sigmoid, wide};
use crate::{Result, Value, kept::Kept, ops::Activation};

/// `√(2/π)` and the factor of the cube in GELU's approximation.
const TANH: (f64, f64) = (0.797_884_560_802_865_4, 0.044_715);
const QUICK: f64 = 1.702;

/// `f(x)`.
fn of(f: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match f {
        // Not `relu`, which would make 0 of a NaN.
        Activation::Relu => filled(x, &x.lt(0.0)?, 0.0)?,
        Activation::Silu => (x * sigmoid(x)?)?,
        Activation::Gelu => (x * normal_share(x)?)?,
        Activation::GeluTanh => (x * tanh_share(x)?)?,
        Activation::QuickGelu => (x * sigmoid(&(x * QUICK)?)?)?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => sigmoid(x)?,
        Activation::Identity => x.clone(),
    })
}

/// `f'(x)`.
fn slope(f: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match f {
        Activation::Relu => x.gt(0.0)?.to_dtype(x.dtype())?,
        Activation::Silu => swish_slope(x, 1.0)?,
        Activation::Gelu => {
            let density = ((x.sqr()? * -0.5)?.exp()? * (1.0 / std::f64::consts::TAU.sqrt()))?;
            (normal_share(x)? + (x * density)?)?
        }
        Activation::GeluTanh => {
            // With `σ` of the argument's double: `σ + 2·x·σ·(1-σ)·u'`.
            let share = tanh_share(x)?;
            let inner = ((x.sqr()? * (3.0 * TANH.1 * TANH.0))? + TANH.0)?;
            let rest = (share.clone() * (share.neg()? + 1.0)?)?;
            (share + (x * 2.0)?.mul(&rest)?.mul(&inner)?)?
        }
        Activation::QuickGelu => swish_slope(x, QUICK)?,
        Activation::Tanh => (x.tanh()?.sqr()?.neg()? + 1.0)?,
        Activation::Sigmoid => {
            let y = sigmoid(x)?;
            (&y * (y.neg()? + 1.0)?)?
        }
        Activation::Identity => x.ones_like()?,
    })
}

/// The derivative of `x·σ(c·x)`.
fn swish_slope(x: &Tensor, c: f64) -> Result<Tensor> {
    let s = sigmoid(&(x * c)?)?;
    Ok((&s * (((x * c)? * (s.neg()? + 1.0)?)? + 1.0)?)?)
}

/// The normal distribution's share below `x`.
fn normal_share(x: &Tensor) -> Result<Tensor> {
    Ok((((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?)
}

/// `(1 + tanh(u))/2` for the `u` of GELU's approximation, which is `σ(2u)`.
fn tanh_share(x: &Tensor) -> Result<Tensor> {
    let u = (x * ((x.sqr()? * (TANH.1 * TANH.0))? + TANH.0)?)?;
    sigmoid(&(u * 2.0)?)
}

/// [`crate::ops::activation`].
pub(crate) fn activation(x: &Value, f: Activation, device: &Device) -> Result<Value> {
    let x_data = floats(device, x)?;
    let (y, narrow) = unit(f, &x_data, None, x.half().is_some())?;
    let y = Value::record("activation", y, [x], |_| {
        let (kept, dtype) = (Kept::composed(x, &x_data), x_data.dtype());
        move |dy: Tensor| {
            let [dx, _] = unit_gradients(f, &dy.contiguous()?, kept, None, [Some(dtype), None])?;
            Ok([dx])
        }
    });
    Ok(y.with_narrow(narrow))
}

/// `f(g)·u`, or `f(g)` without `u`: in bf16 where both are, otherwise in f32 and, if `half` wants it,
/// in bf16 as well.
fn unit(
    f: Activation,
    g: &Tensor,
    u: Option<&Tensor>,
    half: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    on_gpu!(g, gated(f, g, u, half));
    let y = of(f, &wide(g)?)?;
    let y = u.map_or(Ok(y.clone()), |u| y * wide(u)?)?;
    if [Some(g), u].into_iter().flatten().all(|x| x.dtype() == DType::BF16) {
        return Ok((y.to_dtype(DType::BF16)?, None));
    }
    let narrow = half.then(|| y.to_dtype(DType::BF16)).transpose()?;
    Ok((y, narrow))
}

/// The gradients of `g` and `u` in [`unit`], in the dtypes that are given for those that are needed;
/// without `u` it is 1.
fn unit_gradients(
    f: Activation,
    dy: &Tensor,
    g: Kept,
    u: Option<Kept>,
    needed: [Option<DType>; 2],
) -> Result<[Option<Tensor>; 2]> {
    on_gpu!(dy, gated_backward(f, dy, &g.into_tensor(), u.map(Kept::into_tensor), needed));
    let (dy, g) = (wide(dy)?, g.tensor()?);
    let du = |dtype| -> Result<Tensor> { Ok((&dy * of(f, &g)?)?.to_dtype(dtype)?) };
    let du = needed[1].map(du).transpose()?;
    let dg = |dtype| -> Result<Tensor> {
        let dg = (&dy * slope(f, &g)?)?;
        let dg = u.map_or(Ok(dg.clone()), |u| u.tensor().and_then(|u| Ok((dg * u)?)))?;
        Ok(dg.to_dtype(dtype)?)
    };
    Ok([needed[0].map(dg).transpose()?, du])
}

/// [`crate::ops::gated`].
pub(crate) fn gated(gate: &Value, up: &Value, f: Activation, device: &Device) -> Result<Value> {
    let (g, u) = (floats(device, gate)?, floats(device, up)?);
    let half = gate.half().is_some() || up.half().is_some();
    let (y, narrow) = unit(f, &g, Some(&u), half)?;
    let y = Value::record("gated", y, [gate, up], |[need_g, need_u]| {
        let needed = [need_g.then_some(g.dtype()), need_u.then_some(u.dtype())];
        let g = Kept::composed(gate, &g);
        let u = need_g.then(|| Kept::composed(up, &u));
        move |dy: Tensor| unit_gradients(f, &dy.contiguous()?, g, u, needed)
    });
    Ok(y.with_narrow(narrow))
}

/// [`crate::ops::gated_halves`].
pub(crate) fn gated_halves(x: &Value, f: Activation, device: &Device) -> Result<Value> {
    let x_data = data(device, x)?;
    let half = x_data.dim(1)? / 2;
    let halves = move |x: &Tensor| -> Result<(Tensor, Tensor)> {
        Ok((x.narrow(1, 0, half)?.contiguous()?, x.narrow(1, half, half)?.contiguous()?))
    };
    let (g, u) = halves(&x_data)?;
    let y = (of(f, &g)? * u)?;
    Ok(Value::record("gated_halves", y, [x], |_| {
        let kept = Kept::composed(x, &x_data);
        move |dy: Tensor| {
            let (g, u) = halves(&kept.tensor()?)?;
            let dg = ((&dy * u)? * slope(f, &g)?)?;
            Ok([Some(Tensor::cat(&[dg, (dy * of(f, &g)?)?], 1)?)])
        }
    }))
}
