//! Activation functions and gated units: `y = f(x)`, `dx = dy·f'(x)`; and `y = f(g)·u`
//! (arXiv:2002.05202), `dg = dy·u·f'(g)`, `du = dy·f(g)`. Inputs are saved, outputs aren't.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    Result, Value, composed,
    kept::Kept,
    kernels::{F32, activation as kernel, check_dims, dims2, tensor},
    profile,
    weight::Elements,
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

/// `f` of every element.
///
/// # Errors
/// When `x` isn't f32.
pub fn activation(x: &Value, f: Activation) -> Result<Value> {
    let _time = profile::scope("activation");
    const OP: &str = "activation";
    if let Some(device) = composed::device([x.data()]) {
        return composed::activation(x, f, &device);
    }
    let x_data = x.data().contiguous()?;
    let elements = F32::of(OP, &x_data)?;
    let y = tensor(kernel::activation(f, &elements), x.dims())?;
    Ok(Value::record(OP, y, [x], |_| {
        let kept = Kept::of(x, &x_data, &elements);
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let x = kept.read(OP)?;
            let dx = kernel::activation_gradient(f, x.elements(), &F32::of(OP, &dy)?);
            Ok([Some(tensor(dx, dy.dims())?)])
        }
    }))
}

/// `f(gate)·up`, element by element.
///
/// # Errors
/// When the shapes differ or an operand isn't f32.
pub fn gated(gate: &Value, up: &Value, f: Activation) -> Result<Value> {
    let _time = profile::scope("gated");
    const OP: &str = "gated";
    check_dims(OP, "the second operand", up.data(), gate.dims())?;
    if let Some(device) = composed::device([gate.data(), up.data()]) {
        return composed::gated(gate, up, f, &device);
    }
    let (g_data, u_data) = (gate.data().contiguous()?, up.data().contiguous()?);
    let (g, u) = (F32::of(OP, &g_data)?, F32::of(OP, &u_data)?);
    let y = match Value::halves_to_fill([gate, up]) {
        Some(halves) => {
            let (y, narrowed) = kernel::gated_and_narrowed(f, &g, &u);
            for (half, elements) in halves.into_iter().zip(narrowed) {
                half.get_or_init(|| Arc::new(elements));
            }
            y
        }
        None => kernel::gated(f, Elements::F32(&g), &u),
    };
    Ok(Value::record(OP, tensor(y, gate.dims())?, [gate, up], |[need_g, need_u]| {
        let kept_g = Kept::of(gate, &g_data, &g);
        let kept_u = need_g.then(|| Kept::of(up, &u_data, &u)); // only the gate's gradient reads it
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (g, u) = (kept_g.read(OP)?, kept_u.as_ref().map(|u| u.read(OP)).transpose()?);
            let (g, dims, dy) = (g.elements(), dy.dims(), F32::of(OP, &dy)?);
            let Some(u) = &u else {
                return Ok([None, Some(tensor(kernel::gated(f, g, &dy), dims)?)]);
            };
            let factors = [g, u.elements()];
            if !need_u {
                return Ok([Some(tensor(kernel::gate_gradient(f, factors, &dy), dims)?), None]);
            }
            let [dg, du] = kernel::gated_gradients(f, factors, &dy);
            Ok([Some(tensor(dg, dims)?), Some(tensor(du, dims)?)])
        }
    }))
}

/// [`gated`] of the halves of `x` `[n, 2·d]`, whose first is the gate: `[n, d]`.
///
/// # Errors
/// When `x` isn't a matrix with an even number of columns.
pub fn gated_halves(x: &Value, f: Activation) -> Result<Value> {
    let _time = profile::scope("gated");
    const OP: &str = "gated_halves";
    let (n, width) = dims2(OP, "the input", x.data())?;
    let d = width / 2;
    check_dims(OP, "the input", x.data(), &[n, 2 * d])?;
    if let Some(device) = composed::device([x.data()]) {
        return composed::gated_halves(x, f, &device);
    }
    let x_data = x.data().contiguous()?;
    let elements = F32::of(OP, &x_data)?;
    let y = tensor(kernel::gated_halves(f, &elements, n, d), &[n, d])?;
    Ok(Value::record(OP, y, [x], |_| {
        let kept = Kept::of(x, &x_data, &elements);
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (x, dy) = (kept.read(OP)?, F32::of(OP, &dy)?);
            let dx = kernel::gated_halves_gradient(f, x.elements(), &dy, n, d);
            Ok([Some(tensor(dx, &[n, 2 * d])?)])
        }
    }))
}
