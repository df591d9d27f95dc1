//! The keys of a recipe that decide how rows become token ids.

use std::path::PathBuf;

use crate::date::DateTime;
use crate::error::{DataError, Result};

/// Which samples share a sequence of up to `cutoff_len` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// Every sample stands alone.
    #[default]
    Off,
    /// Samples are put together (`packing`, `neat_packing`). Attention stays inside each sample
    /// either way.
    On,
}

/// How several data sets become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MixStrategy {
    /// One after the other.
    #[default]
    Concat,
    /// In turn, until the first is used up.
    InterleaveUnder,
    /// In turn, until the last is used up; the others begin again.
    InterleaveOver,
    /// In turn; one that is used up drops out.
    InterleaveOnce,
}

/// The data keys of a recipe; names, meaning and defaults are LLaMA-Factory's.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Folder of `dataset_info.json`.
    pub dataset_dir: PathBuf,
    /// The contents of `dataset_info.json`, where a recipe has them inline; files are then looked
    /// for in `dataset_dir`.
    pub dataset_info: Option<serde_json::Map<String, serde_json::Value>>,
    /// Where the paths of pictures begin; none: in `dataset_dir`.
    pub media_dir: Option<PathBuf>,
    /// Names in it, or paths of files.
    pub dataset: Vec<String>,
    /// Name of a chat template; none takes the model's own.
    pub template: Option<String>,
    /// Most tokens of a sample.
    pub cutoff_len: usize,
    /// Train on the prompts too.
    pub train_on_prompt: bool,
    /// Train on the last turn only.
    pub mask_history: bool,
    /// Replaces the template's default system text; an empty text turns it off.
    pub default_system: Option<String>,
    /// Reasoning templates: `Some(true)` trains empty thoughts where an answer has none,
    /// `Some(false)` removes thoughts and puts an empty one into the prompt, `None` puts an empty
    /// one into the prompt of answers without.
    pub enable_thinking: Option<bool>,
    /// Keep the thoughts of earlier turns.
    pub preserve_thinking: bool,
    /// Tool text style; none takes the template's.
    pub tool_format: Option<String>,
    /// Encode the text of special tokens as plain text; as in LLaMA-Factory that holds for the
    /// template's own text too, but not for its `bos_token` and `eos_token`.
    pub split_special_tokens: bool,
    /// The first rows of each data set only.
    pub max_samples: Option<usize>,
    /// How several data sets become one.
    pub mix_strategy: MixStrategy,
    /// Probability of each data set when interleaving.
    pub interleave_probs: Option<Vec<f64>>,
    /// Rows split off for evaluation: a share below 1, or a count.
    pub val_size: f64,
    /// Seed of splits, random picks and orders.
    pub seed: u64,
    /// Keep the rows in their order.
    pub disable_shuffling: bool,
    /// Which samples share a sequence.
    pub packing: Packing,
    /// Rows that are packed, or joined in pretraining, together.
    pub preprocessing_batch_size: usize,
    /// Has to stay true: nothing is ever padded here, so no label can stand on padding.
    pub ignore_pad_token_for_loss: bool,
    /// Leave out rows that can't be used, and count them.
    pub skip_bad_rows: bool,
    /// The day that templates write into prompts. The library has no clock.
    pub now: Option<DateTime>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            dataset_dir: PathBuf::from("data"),
            dataset_info: None,
            media_dir: None,
            dataset: Vec::new(),
            template: None,
            cutoff_len: 2048,
            train_on_prompt: false,
            mask_history: false,
            default_system: None,
            enable_thinking: Some(true),
            preserve_thinking: false,
            tool_format: None,
            split_special_tokens: false,
            max_samples: None,
            mix_strategy: MixStrategy::Concat,
            interleave_probs: None,
            val_size: 0.0,
            seed: 42,
            disable_shuffling: false,
            packing: Packing::Off,
            preprocessing_batch_size: 1000,
            ignore_pad_token_for_loss: true,
            skip_bad_rows: false,
            now: None,
        }
    }
}

impl DataOptions {
    /// Checks what can be said without data or tokenizer.
    /// # Errors
    /// A value out of range, or two options that exclude each other.
    pub fn check(&self) -> Result<()> {
        let wrong =
            |option, message: &str| Err(DataError::Option { option, message: message.to_owned() });
        if self.cutoff_len == 0 {
            return wrong("cutoff_len", "is 0; it must be at least 1");
        }
        if self.train_on_prompt && self.mask_history {
            return wrong("train_on_prompt", "excludes `mask_history`; set only one of them");
        }
        if !self.ignore_pad_token_for_loss {
            let message = "can't be false: sequences are never padded, so there is no padding to \
                           train on; remove the key";
            return wrong("ignore_pad_token_for_loss", message);
        }
        if !self.val_size.is_finite() || self.val_size < 0.0 {
            return wrong("val_size", "must be a share below 1 or a count of rows");
        }
        if self.preprocessing_batch_size == 0 {
            return wrong("preprocessing_batch_size", "is 0; it must be at least 1");
        }
        self.check_mix()
    }

    fn check_mix(&self) -> Result<()> {
        let Some(probabilities) = &self.interleave_probs else { return Ok(()) };
        let wrong = |message| Err(DataError::Option { option: "interleave_probs", message });
        if self.mix_strategy == MixStrategy::Concat {
            return wrong("needs an interleaving `mix_strategy`".to_owned());
        }
        if probabilities.len() != self.dataset.len() {
            return wrong(format!(
                "has {} numbers for {} data sets; give one each",
                probabilities.len(),
                self.dataset.len()
            ));
        }
        let sum: f64 = probabilities.iter().sum();
        if probabilities.iter().any(|p| !(0.0..=1.0).contains(p)) || (sum - 1.0).abs() > 1e-6 {
            return wrong("must be shares from 0 to 1 that add up to 1".to_owned());
        }
        Ok(())
    }
}
