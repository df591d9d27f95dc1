//! Masked words: some tokens are hidden, and the model is to say what they were; the loss is that
//! of [`Sft`](super::Sft) on them. Paper: arXiv:1810.04805, §3.1. Reference: transformers
//! `data/data_collator.py`, `DataCollatorForLanguageModeling`.

use lowrank_autograd::Key;
use lowrank_data::{Example, IGNORE_INDEX, Labels, Special, Tokenizer};

use crate::{
    Error, Result,
    recipe::plan::{Plan, Stage},
};

/// Of the tokens that are to be guessed, the share in whose place the mask stands.
const HIDDEN: f64 = 0.8;
/// And the share in whose place any token stands. The others stand as they are.
const REPLACED: f64 = 0.1;

/// What is hidden of each row: a function of seed, epoch, row and position. Rows that are evaluated
/// are the same each time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskedWords {
    probability: f64,
    mask: u32,
    vocabulary: u32,
    seed: u64,
    stream: Key,
}

impl MaskedWords {
    /// What a plan hides, if its stage is `pt`. Any token of the tokenizer may replace another, as
    /// long as the model knows it (`vocabulary`).
    ///
    /// # Errors
    /// When the tokenizer has no mask.
    pub fn of(plan: &Plan, tokenizer: &Tokenizer, vocabulary: usize) -> Result<Option<Self>> {
        let Stage::Pt { mlm_probability: probability } = plan.stage else { return Ok(None) };
        let mask = tokenizer.special_id(Special::Mask).ok_or_else(|| {
            let folder = plan.model.model_name_or_path.display();
            let what = "has no `mask_token`, without which no word can be hidden (`stage: pt`)";
            Error::Setup(format!("the tokenizer of `{folder}` {what}"))
        })?;
        let vocabulary = u32::try_from(vocabulary.min(tokenizer.vocab_size())).unwrap_or(u32::MAX);
        let seed = plan.train.seed;
        let stream = Key::new(seed).at("masked words of evaluation");
        Ok(Some(Self { probability, mask, vocabulary, seed, stream }))
    }

    /// What is hidden in an epoch of training.
    #[must_use]
    pub fn in_epoch(self, epoch: u64) -> Self {
        Self { stream: Key::new(self.seed).at("masked words").with(epoch), ..self }
    }

    /// The row number `sample` with its hidden tokens, which alone have labels.
    #[must_use]
    pub fn hide(&self, sample: u64, example: &Example) -> Example {
        let mut example = example.clone();
        let Labels::Tokens(labels) = &mut example.labels else { return example };
        let key = self.stream.with(sample);
        for (place, (id, label)) in example.input_ids.iter_mut().zip(labels).enumerate() {
            let [chosen, how, other, _] = key.block(place as u64, 0);
            if *label == IGNORE_INDEX || share(chosen) >= self.probability {
                *label = IGNORE_INDEX;
            } else if share(how) < HIDDEN {
                *id = self.mask;
            } else if share(how) < HIDDEN + REPLACED {
                *id = ((u64::from(other) * u64::from(self.vocabulary)) >> 32) as u32;
            }
        }
        example
    }
}

fn share(word: u32) -> f64 {
    f64::from(word) / 4_294_967_296.0
}
