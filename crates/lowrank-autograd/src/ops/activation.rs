//! Activation functions and gated units: `y = f(x)`, `dx = dy·f'(x)`; and `y = f(g)·u`
//! (arXiv:2002.05202), `dg = dy·u·f'(g)`, `du = dy·f(g)`. Inputs are saved, outputs aren't.

use candle_core::Tensor;

use crate::{
    Result, Value,
    kernels::{
        F32,
        activation::{map, zip},
        check_dims, tensor,
    },
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
    let x_data = x.data().contiguous()?;
    let y = tensor(map(&F32::of("activation", &x_data)?, |v| f.of(v)), x.dims())?;
    Ok(Value::record("activation", y, [x], |_| {
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (x, d) = (F32::of("activation", &x_data)?, F32::of("activation", &dy)?);
            let dx = zip(&x, &d, |x, d| d * f.slope(x));
            Ok([Some(tensor(dx, x_data.dims())?)])
        }
    }))
}

/// `f(gate)·up`, element by element.
///
/// # Errors
/// When the shapes differ or an operand isn't f32.
pub fn gated(gate: &Value, up: &Value, f: Activation) -> Result<Value> {
    check_dims("gated", "the second operand", up.data(), gate.dims())?;
    let (g_data, u_data) = (gate.data().contiguous()?, up.data().contiguous()?);
    let y = zip(&F32::of("gated", &g_data)?, &F32::of("gated", &u_data)?, |g, u| f.of(g) * u);
    Ok(Value::record("gated", tensor(y, gate.dims())?, [gate, up], |[need_g, need_u]| {
        let u_data = need_g.then_some(u_data); // only the gate's gradient reads it
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (g, d) = (F32::of("gated", &g_data)?, F32::of("gated", &dy)?);
            let dg = match &u_data {
                Some(u) => {
                    let through = zip(&d, &F32::of("gated", u)?, |d, u| d * u);
                    Some(tensor(zip(&through, &g, |t, g| t * f.slope(g)), dy.dims())?)
                }
                None => None,
            };
            let du = need_u.then(|| tensor(zip(&d, &g, |d, g| d * f.of(g)), dy.dims()));
            Ok([dg, du.transpose()?])
        }
    }))
}
