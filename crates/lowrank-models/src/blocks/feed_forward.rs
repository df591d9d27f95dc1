//! Feed-forward blocks made of layers that the architecture names itself.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation},
};
use lowrank_peft::{Pass, layers::Linear};

use crate::{Builder, DropoutSite};

/// `down(drop(f(up(x))))` (arXiv:1706.03762), or with a gate `down(drop(f(gate(x))·up(x)))`
/// (arXiv:2002.05202).
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// The gate, where there is one.
    pub gate: Option<Linear>,
    /// Into the block's inner width.
    pub up: Linear,
    /// `f`
    pub activation: Activation,
    /// Dropout between the layers (T5).
    pub dropout: Option<DropoutSite>,
    /// Back to the residual stream's width.
    pub down: Linear,
}

impl FeedForward {
    /// Two layers with an activation between them.
    pub fn plain(up: Linear, activation: Activation, down: Linear) -> Self {
        Self { gate: None, up, activation, dropout: None, down }
    }

    /// [`FeedForward::plain`] of linear layers of these names at `b`, from the first width to the
    /// second and back.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn linear(
        [up, down]: [&str; 2],
        [outer, inner]: [usize; 2],
        bias: bool,
        activation: Activation,
        b: &Builder,
    ) -> crate::Result<Self> {
        let up = b.linear(up, outer, inner, bias)?;
        Ok(Self::plain(up, activation, b.linear(down, inner, outer, bias)?))
    }

    /// `x` `[n, hidden_size]` → the same.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let up = self.up.forward(x, pass)?;
        let inner = match &self.gate {
            Some(gate) => ops::gated(&gate.forward(x, pass)?, &up, self.activation)?,
            None => ops::activation(&up, self.activation)?,
        };
        let inner = self.dropout.map_or(Ok(inner.clone()), |d| d.forward(&inner, pass))?;
        self.down.forward(&inner, pass)
    }
}
