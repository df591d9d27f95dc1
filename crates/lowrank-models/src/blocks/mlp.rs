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

    /// [`Mlp::forward`], and the logits `[n, experts]` of its router if it has one.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    fn forward_routed(&self, x: &Value, pass: &Pass) -> Result<(Value, Option<Value>)> {
        Ok((self.forward(x, pass)?, None))
    }
}

/// `down(f(gate(x))·up(x))` (arXiv:2002.05202).
#[derive(Clone, Debug)]
pub struct GatedMlp {
    gate_up: GateUp,
    down: Linear,
    activation: Activation,
}

/// Where gate and input come from.
#[derive(Clone, Debug)]
enum GateUp {
    /// A layer for each.
    Separate([Linear; 2]),
    /// One layer, whose first half is the gate.
    Fused(Linear),
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
            gate_up: GateUp::Separate([
                b.linear("gate_proj", hidden, inner, shape.bias)?,
                b.linear("up_proj", hidden, inner, shape.bias)?,
            ]),
            down: b.linear("down_proj", inner, hidden, shape.bias)?,
            activation: shape.activation,
        })
    }

    /// Two layers at `b` under names of the model's own: gate and input in one, and the output.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn fused(shape: &MlpShape, [gate_up, down]: [&str; 2], b: &Builder) -> crate::Result<Self> {
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        Ok(Self {
            gate_up: GateUp::Fused(b.linear(gate_up, hidden, 2 * inner, shape.bias)?),
            down: b.linear(down, inner, hidden, shape.bias)?,
            activation: shape.activation,
        })
    }
}

impl Mlp for GatedMlp {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let inner = match &self.gate_up {
            GateUp::Separate([gate, up]) => {
                let (gate, up) = (gate.forward(x, pass)?, up.forward(x, pass)?);
                ops::gated(&gate, &up, self.activation)?
            }
            GateUp::Fused(layer) => ops::gated_halves(&layer.forward(x, pass)?, self.activation)?,
        };
        self.down.forward(&inner, pass)
    }
}
