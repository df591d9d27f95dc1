//! The layers that models are made of. Each carries its base tensors and whatever adapters add to
//! it; an architecture calls `forward` and knows nothing of either.

mod bare;
mod embedding;
mod linear;
mod norm;
mod slots;
mod stack;

use candle_core::Device;
use lowrank_autograd::Result;

pub use bare::Bare;
pub use embedding::Embedding;
pub use linear::{Linear, LinearKind};
pub use norm::{Norm, NormKind};
pub use stack::Stack;

use crate::{BaseTensor, methods::lora::LoraLayer};

/// A layer of any kind, as the list of a model's modules holds it.
#[derive(Clone, Debug)]
pub enum Layer {
    /// `nn.Linear` or transformers' `Conv1D`.
    Linear(Linear),
    /// `nn.Embedding`.
    Embedding(Embedding),
    /// RMSNorm or LayerNorm.
    Norm(Norm),
    /// A parameter that holds the matrices of experts; its path is the parameter's.
    Stack(Stack),
    /// A tensor beside the layers; no module in PyTorch's sense.
    Bare(Bare),
}

impl Layer {
    /// Its base tensors.
    pub fn tensors(&self) -> Vec<&BaseTensor> {
        match self {
            Self::Linear(l) => std::iter::once(l.weight()).chain(l.bias()).collect(),
            Self::Embedding(e) => vec![e.weight()],
            Self::Norm(n) => std::iter::once(n.weight()).chain(n.bias()).collect(),
            Self::Stack(s) => vec![s.weight()],
            Self::Bare(b) => vec![b.tensor()],
        }
    }

    /// The device that it lies on.
    pub fn device(&self) -> Device {
        self.tensors().first().map_or(Device::Cpu, |tensor| tensor.weight().device())
    }

    /// The low-rank adapter of this name, if the layer has it.
    pub fn adapter(&self, name: &str) -> Option<LoraLayer> {
        match self {
            Self::Linear(l) => l.adapter(name),
            Self::Embedding(e) => e.adapter(name),
            Self::Stack(s) => s.slots().get(name),
            Self::Norm(_) | Self::Bare(_) => None,
        }
    }

    /// Takes an adapter and its copies of base tensors out.
    pub fn remove_adapter(&self, name: &str) {
        match self {
            Self::Linear(l) => l.remove_adapter(name),
            Self::Embedding(e) => e.remove_adapter(name),
            Self::Stack(s) => s.slots().remove(name),
            Self::Norm(_) | Self::Bare(_) => {}
        }
        self.tensors().iter().for_each(|t| t.remove_copy(name));
    }

    /// Puts the adapter's copies in the place of base tensors and adds its low-rank change.
    pub(crate) fn merge(&self, name: &str) -> Result<()> {
        for tensor in self.tensors() {
            if let Some((_, copy)) = tensor.copy_of(name) {
                tensor.merge(&copy.data())?;
            }
        }
        match self {
            Self::Linear(l) => l.merge(name),
            Self::Embedding(e) => e.merge(name),
            Self::Stack(s) => s.merge(name),
            Self::Norm(_) | Self::Bare(_) => Ok(()),
        }
    }

    /// Makes merges final.
    pub(crate) fn keep_merge(&self) {
        self.tensors().iter().for_each(|t| t.keep_merge());
        self.forget_merges();
    }

    /// Restores the base tensors exactly.
    pub(crate) fn unmerge(&self) {
        self.tensors().iter().for_each(|t| t.unmerge());
        self.forget_merges();
    }

    fn forget_merges(&self) {
        match self {
            Self::Linear(l) => l.unmerge(),
            Self::Embedding(e) => e.unmerge(),
            Self::Stack(s) => s.slots().clear_merged(),
            Self::Norm(_) | Self::Bare(_) => {}
        }
    }

    /// Adds a low-rank adapter, if the layer is one that can have it.
    pub(crate) fn set_adapter(&self, name: &str, lora: LoraLayer) {
        match self {
            Self::Linear(l) => l.set_adapter(name, lora),
            Self::Embedding(e) => e.set_adapter(name, lora),
            Self::Stack(s) => s.slots().set(name, lora),
            Self::Norm(_) | Self::Bare(_) => {}
        }
    }
}
