//! Objectives: each turns a model and a batch into a loss, one file a stage. The loop owns
//! everything else.

mod masked_words;
mod sft;

use lowrank_autograd::Value;
use lowrank_models::{Model, PeftModel};
use lowrank_peft::Pass;

use crate::{Batch, Result};

pub use masked_words::MaskedWords;
pub use sft::{Sft, logits};

/// What is trained for.
pub trait Objective: std::fmt::Debug {
    /// The loss of a batch, summed over its targets; the loop divides by the targets of the whole
    /// step.
    ///
    /// # Errors
    /// When the batch is of a kind that the model's head doesn't serve.
    fn loss(&self, model: &Model, batch: &Batch, passes: &Passes) -> Result<Loss>;
}

/// A loss before its division.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The sum over targets, a scalar.
    pub sum: Value,
    /// Targets that were predicted right, where that is defined.
    pub correct: Option<usize>,
}

/// The circumstances of a batch's forward pass.
#[derive(Clone, Debug)]
pub struct Passes {
    /// For the model, or the encoder of an encoder-decoder.
    pub input: Pass,
    /// For the decoder of an encoder-decoder.
    pub decoder: Pass,
}

impl Passes {
    /// A pass without gradients or dropout.
    pub fn inference(model: &PeftModel) -> Self {
        Self { input: model.inference(), decoder: model.inference() }
    }

    /// A pass that records; dropout follows `seed`, `step` and the batch's samples.
    pub fn training(model: &PeftModel, batch: &Batch, seed: u64, step: u64) -> Self {
        let key = Batch::step_key(seed, step);
        Self {
            input: model.recording().with_dropout(key, batch.row_keys()),
            decoder: model.recording().with_dropout(key, batch.decoder_row_keys()),
        }
    }

    /// A pass that records, without dropout.
    pub fn recording(model: &PeftModel) -> Self {
        Self { input: model.recording(), decoder: model.recording() }
    }

    /// Runs blocks again in the backward pass instead of keeping their tensors.
    pub fn with_checkpointing(self, on: bool) -> Self {
        Self {
            input: self.input.with_checkpointing(on),
            decoder: self.decoder.with_checkpointing(on),
        }
    }
}
