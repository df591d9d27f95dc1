//! Linear layers with adapters.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};

use super::slots::Slots;
use crate::{BaseTensor, Pass, base_tensor::Operand, methods::lora::LoraLayer};

/// How a linear layer's weight lies in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearKind {
    /// `nn.Linear`: `[out, in]`.
    Linear,
    /// transformers' `Conv1D`: `[in, out]`.
    Conv1D,
    /// A router of experts, `[out, in]`, which isn't an `nn.Linear` in transformers.
    Router,
}

/// `y = x·Wᵀ + b` and what adapters add. Clones are the same layer.
#[derive(Clone, Debug)]
pub struct Linear(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: LinearKind,
    weight: BaseTensor,
    bias: Option<BaseTensor>,
    slots: Slots,
}

impl Linear {
    /// A layer over base tensors; a [`LinearKind::Conv1D`]'s weight is a transposed one.
    pub fn new(kind: LinearKind, weight: BaseTensor, bias: Option<BaseTensor>) -> Self {
        Self(Arc::new(Inner { kind, weight, bias, slots: Slots::default() }))
    }

    /// How the weight lies in the checkpoint.
    pub fn kind(&self) -> LinearKind {
        self.0.kind
    }

    /// The weight; its dimensions are `[out, in]`.
    pub fn weight(&self) -> &BaseTensor {
        &self.0.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&BaseTensor> {
        self.0.bias.as_ref()
    }

    /// `x` `[n, in]` → `[n, out]`; bf16 if the matrix is.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        self.run(x, pass, ops::linear)
    }

    /// The same, always of f32: logits and scores, which are compared with each other.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn logits(&self, x: &Value, pass: &Pass) -> Result<Value> {
        self.run(x, pass, ops::logits)
    }

    fn run(
        &self,
        x: &Value,
        pass: &Pass,
        op: fn(&Value, ops::Matrix<'_>, Option<&Value>, Vec<ops::LowRank>) -> Result<Value>,
    ) -> Result<Value> {
        let weight = self.0.weight.operand(pass);
        let matrix = match &weight {
            Operand::Frozen(weight) => ops::Matrix::Frozen(weight),
            Operand::Trained(value) => {
                ops::Matrix::Trained { value, transposed: self.0.kind == LinearKind::Conv1D }
            }
        };
        let bias = self.bias().map(|b| b.value(pass)).transpose()?;
        let terms = self.0.slots.active(pass).iter().map(|lora| lora.low_rank(pass)).collect();
        op(x, matrix, bias.as_ref(), terms)
    }

    /// The adapter of this name, if the layer has it.
    pub fn adapter(&self, name: &str) -> Option<LoraLayer> {
        self.0.slots.get(name)
    }

    /// Adds an adapter, or replaces the one of the same name.
    pub fn set_adapter(&self, name: &str, lora: LoraLayer) {
        self.0.slots.set(name, lora);
    }

    /// Takes an adapter out.
    pub fn remove_adapter(&self, name: &str) {
        self.0.slots.remove(name);
    }

    /// Adds the adapter's change to the base tensors; passes then leave its terms out. The bias of
    /// `lora_bias` needs a bias to go to, which the caller has made sure of.
    pub(crate) fn merge(&self, name: &str) -> Result<()> {
        let Some(lora) = self.0.slots.begin_merge(name) else { return Ok(()) };
        let delta = match self.0.kind {
            LinearKind::Linear | LinearKind::Router => lora.delta()?,
            LinearKind::Conv1D => lora.delta()?.t()?,
        };
        self.0.weight.merge_sum(&delta)?;
        match (lora.delta_bias()?, self.bias()) {
            (Some(delta), Some(bias)) => bias.merge_sum(&delta),
            _ => Ok(()),
        }
    }

    /// Takes every merged change back, exactly.
    pub(crate) fn unmerge(&self) {
        self.0.slots.clear_merged();
    }
}
