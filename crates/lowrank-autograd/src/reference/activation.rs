//! Activation functions as transformers' `activations.py` and PyTorch write them.

use std::f64::consts::{FRAC_2_PI, SQRT_2};

use candle_core::Tensor;

use crate::{Result, ops::Activation};

/// `f` of every element of `x`.
///
/// # Errors
/// Those of the tensor library.
pub fn activation(x: &Tensor, f: Activation) -> Result<Tensor> {
    Ok(match f {
        Activation::Relu => x.relu()?,
        Activation::Silu => (x * sigmoid(x)?)?,
        Activation::Gelu => (((x / SQRT_2)?.erf()? + 1.0)? * (x * 0.5)?)?,
        Activation::GeluTanh => {
            let inner = ((x + (x.powf(3.0)? * 0.044_715)?)? * FRAC_2_PI.sqrt())?;
            ((inner.tanh()? + 1.0)? * (x * 0.5)?)?
        }
        Activation::QuickGelu => (x * sigmoid(&(x * 1.702)?)?)?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => sigmoid(x)?,
        Activation::Identity => x.clone(),
    })
}

/// `f(gate)·up`, element by element (arXiv:2002.05202).
///
/// # Errors
/// When the shapes differ.
pub fn gated(gate: &Tensor, up: &Tensor, f: Activation) -> Result<Tensor> {
    Ok((activation(gate, f)? * up)?)
}

/// `1/(1 + exp(-x))`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}
