//! Embedding tables with adapters.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};

use super::slots::Slots;
use crate::{BaseTensor, Pass, base_tensor::Operand, methods::lora::LoraLayer};

/// Rows of a table by id, and what adapters add. Clones are the same layer.
#[derive(Clone, Debug)]
pub struct Embedding(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    weight: BaseTensor,
    padding: Option<u32>,
    slots: Slots,
}

impl Embedding {
    /// A layer over its table, `[rows, dim]`.
    pub fn new(weight: BaseTensor) -> Self {
        Self::padded(weight, None)
    }

    /// A layer over its table whose row `padding` doesn't train (torch's `padding_idx`).
    pub fn padded(weight: BaseTensor, padding: Option<u32>) -> Self {
        Self(Arc::new(Inner { weight, padding, slots: Slots::default() }))
    }

    /// The row that doesn't train.
    pub fn padding(&self) -> Option<u32> {
        self.0.padding
    }

    /// The table.
    pub fn weight(&self) -> &BaseTensor {
        &self.0.weight
    }

    /// The rows of `ids`: `[ids.len(), dim]`, f32.
    ///
    /// # Errors
    /// For an id outside the table.
    pub fn forward(&self, ids: &Arc<[u32]>, pass: &Pass) -> Result<Value> {
        let table = self.0.weight.operand(pass);
        let rows = match &table {
            Operand::Frozen(weight) => ops::Rows::Frozen(weight),
            Operand::Trained(value) => ops::Rows::Trained(value),
        };
        let terms = self.0.slots.active(pass).iter().map(|lora| lora.low_rank_rows(pass)).collect();
        ops::embedding(rows, ids, terms, self.0.padding)
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

    /// Adds the adapter's change to the table; passes then leave its terms out.
    pub(crate) fn merge(&self, name: &str) -> Result<()> {
        match self.0.slots.begin_merge(name) {
            // `s·(B·A)ᵀ`: rows are those of the table.
            Some(lora) => self.0.weight.merge_sum(&lora.delta()?.t()?),
            None => Ok(()),
        }
    }

    /// Takes every merged change back, exactly.
    pub(crate) fn unmerge(&self) {
        self.0.slots.clear_merged();
    }
}
