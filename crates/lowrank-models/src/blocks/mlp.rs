//! Feed-forward blocks.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation},
};
use lowrank_peft::{Pass, layers::Linear};

use crate::Builder;

/// What follows the attention in a block.
pub trait Mlp: std::fmt::Debug + Send + Sync {
    /// `x` `[n, hidden_size]` → the same.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value>;
}

/// `down(f(gate(x))·up(x))` (arXiv:2002.05202).
#[derive(Clone, Debug)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

/// Sizes of a [`GatedMlp`].
#[derive(Clone, Copy, Debug)]
pub struct MlpShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside.
    pub intermediate_size: usize,
    /// Whether the projections have biases.
    pub bias: bool,
    /// `f`
    pub activation: Activation,
}

impl GatedMlp {
    /// Projections `gate_proj`, `up_proj` and `down_proj` at `b`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(shape: &MlpShape, b: &Builder) -> crate::Result<Self> {
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        Ok(Self {
            gate_proj: b.linear("gate_proj", hidden, inner, shape.bias)?,
            up_proj: b.linear("up_proj", hidden, inner, shape.bias)?,
            down_proj: b.linear("down_proj", inner, hidden, shape.bias)?,
            activation: shape.activation,
        })
    }
}

impl Mlp for GatedMlp {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let gate = self.gate_proj.forward(x, pass)?;
        let up = self.up_proj.forward(x, pass)?;
        self.down_proj.forward(&ops::gated(&gate, &up, self.activation)?, pass)
    }
}
