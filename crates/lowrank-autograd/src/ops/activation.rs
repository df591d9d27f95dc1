//! Activation functions and gated units: `y = f(x)`, `dx = dy·f'(x)`; and `y = f(g)·u`
//! (arXiv:2002.05202), `dg = dy·u·f'(g)`, `du = dy·f(g)`. Inputs are saved, outputs aren't.

use candle_core::Tensor;

use crate::{
    Result, Value, composed,
    kept::Kept,
    kernels::{Floats, activation as kernel, check_dims, dims2},
    profile,
};

/// An activation function, under the names of transformers' `ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `relu`
    Relu,
    /// `silu`, `swish`
    Silu,
    /// `gelu`: with the error function.
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: with the hyperbolic tangent.
    GeluTanh,
    /// `quick_gelu`: `x·σ(1.702x)`.
    QuickGelu,
    /// `tanh`
    Tanh,
    /// `sigmoid`
    Sigmoid,
    /// `linear`
    Identity,
}

impl Activation {
    /// The function of a transformers name; `None` for one that isn't known.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "linear" => Self::Identity,
            _ => return None,
        })
    }
}

/// `f` of every element, bf16 if `x` is.
///
/// # Errors
/// When `x` is neither f32 nor bf16.
pub fn activation(x: &Value, f: Activation) -> Result<Value> {
    let _time = profile::scope("activation");
    const OP: &str = "activation";
    if let Some(device) = composed::device([x.data()]) {
        return composed::activation(x, f, &device);
    }
    let (x_data, narrow) = (x.data().contiguous()?, x.is_narrow());
    let y = kernel::activation(f, Floats::of(OP, &x_data)?.elements(), narrow).tensor(x.dims())?;
    Ok(Value::record(OP, y, [x], |_| {
        let kept = Kept::of(x, &x_data);
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (x, dy_read) = (kept.read(OP)?, Floats::of(OP, &dy)?);
            let dx = kernel::activation_gradient(f, x.elements(), dy_read.elements(), narrow);
            Ok([Some(dx.tensor(dy.dims())?)])
        }
    }))
}

/// `f(gate)·up`, element by element, bf16 if both are.
///
/// # Errors
/// When the shapes differ or an operand is neither f32 nor bf16.
pub fn gated(gate: &Value, up: &Value, f: Activation) -> Result<Value> {
    let _time = profile::scope("gated");
    const OP: &str = "gated";
    check_dims(OP, "the second operand", up.data(), gate.dims())?;
    if let Some(device) = composed::device([gate.data(), up.data()]) {
        return composed::gated(gate, up, f, &device);
    }
    let (g_data, u_data) = (gate.data().contiguous()?, up.data().contiguous()?);
    let narrow = gate.is_narrow() && up.is_narrow();
    let y = {
        let (g, u) = (Floats::of(OP, &g_data)?, Floats::of(OP, &u_data)?);
        kernel::gated(f, g.elements(), u.elements(), narrow).tensor(gate.dims())?
    };
    Ok(Value::record(OP, y, [gate, up], |[need_g, need_u]| {
        let kept_g = Kept::of(gate, &g_data);
        let kept_u = need_g.then(|| Kept::of(up, &u_data)); // only the gate's gradient reads it
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (g, u) = (kept_g.read(OP)?, kept_u.as_ref().map(|u| u.read(OP)).transpose()?);
            let (g, dims, dy) = (g.elements(), dy.dims(), Floats::of(OP, &dy)?);
            let dy = dy.elements();
            let Some(u) = &u else {
                return Ok([None, Some(kernel::gated(f, g, dy, narrow).tensor(dims)?)]);
            };
            let factors = [g, u.elements(), dy];
            if !need_u {
                return Ok([Some(kernel::gate_gradient(f, factors, narrow).tensor(dims)?), None]);
            }
            let [dg, du] = kernel::gated_gradients(f, factors, narrow);
            Ok([Some(dg.tensor(dims)?), Some(du.tensor(dims)?)])
        }
    }))
}

/// [`gated`] of the halves of `x` `[n, 2·d]`, whose first is the gate: `[n, d]`, bf16 if `x` is.
///
/// # Errors
/// When `x` isn't a matrix with an even number of columns.
pub fn gated_halves(x: &Value, f: Activation) -> Result<Value> {
    const OP: &str = "gated_halves";
    let _time = profile::scope(OP);
    let (n, width) = dims2(OP, "the input", x.data())?;
    let d = width / 2;
    check_dims(OP, "the input", x.data(), &[n, 2 * d])?;
    if let Some(device) = composed::device([x.data()]) {
        return composed::gated_halves(x, f, &device);
    }
    let (x_data, narrow) = (x.data().contiguous()?, x.is_narrow());
    let y = kernel::gated_halves(f, Floats::of(OP, &x_data)?.elements(), [n, d], narrow);
    Ok(Value::record(OP, y.tensor(&[n, d])?, [x], |_| {
        let kept = Kept::of(x, &x_data);
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (x, dy) = (kept.read(OP)?, Floats::of(OP, &dy)?);
            let (x, dy) = (x.elements(), dy.elements());
            let dx = kernel::gated_halves_gradient(f, x, dy, [n, d], narrow);
            Ok([Some(dx.tensor(&[n, 2 * d])?)])
        }
    }))
}
