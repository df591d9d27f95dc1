//! Matrices of experts with adapters.

use std::{ops::Range, sync::Arc};

use lowrank_autograd::{Result, Value, ops};

use super::slots::Slots;
use crate::{BaseTensor, Pass, base_tensor::Operand};

/// One matrix for each expert, in one tensor `[experts, out, in]`, and what adapters add: PEFT's
/// `ParamWrapper` around a bare parameter. Clones are the same layer.
#[derive(Clone, Debug)]
pub struct Stack(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    weight: BaseTensor,
    /// What the matrices are called where each is a layer of its own, an expert's next to each
    /// other.
    layers: Vec<String>,
    slots: Slots,
}

impl Stack {
    /// A layer over its tensor. `layers` are the paths that the matrices have in models where each
    /// is a linear layer: as many for each expert, one below another.
    pub fn new(weight: BaseTensor, layers: Vec<String>) -> Self {
        Self(Arc::new(Inner { weight, layers, slots: Slots::default() }))
    }

    /// The tensor.
    pub fn weight(&self) -> &BaseTensor {
        &self.0.weight
    }

    /// Number of experts, rows and columns of a matrix.
    pub fn dims(&self) -> [usize; 3] {
        <[usize; 3]>::try_from(self.0.weight.weight().dims()).unwrap_or_default()
    }

    /// The paths that the matrices have where each is a linear layer.
    pub(crate) fn layers(&self) -> &[String] {
        &self.0.layers
    }

    /// The product of each expert's rows of `x` `[n, in]` with its matrix: `[n, out]`; `groups` says
    /// which rows each takes, one range after another.
    ///
    /// # Errors
    /// When `x` or `groups` don't fit.
    pub fn forward(&self, x: &Value, groups: &Arc<[Range<usize>]>, pass: &Pass) -> Result<Value> {
        let weight = self.0.weight.operand(pass);
        let stack = match &weight {
            Operand::Frozen(weight) => ops::Stack::Frozen(weight),
            Operand::Trained(value) => ops::Stack::Trained(value),
        };
        let terms = self.0.slots.active(pass).iter().map(|l| l.low_rank_stack(pass)).collect();
        ops::grouped_linear(x, groups, stack, terms)
    }

    /// Its adapters.
    pub(crate) fn slots(&self) -> &Slots {
        &self.0.slots
    }

    /// Adds the adapter's change to each matrix; passes then leave its terms out.
    pub(crate) fn merge(&self, name: &str) -> Result<()> {
        let Some(lora) = self.0.slots.begin_merge(name) else { return Ok(()) };
        let [experts, ..] = self.dims();
        self.0.weight.merge_sums(|expert| lora.delta_of(expert, experts))
    }
}
