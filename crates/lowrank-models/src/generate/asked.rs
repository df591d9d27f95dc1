//! What a model's files ask of generation besides the likeliest token. Reference: transformers
//! `generation/configuration_utils.py` and `generation/logits_process.py`.

use serde_json::Value;

use super::{GenerateOptions, Sampling};
use crate::{Config, Model, Result};

/// `generation_config.json` or, in a folder without one, the language model's `config.json`, as
/// transformers has it; and whether it is the former.
fn asked(model: &Model) -> Result<(Config, bool)> {
    let path = model.folder.join("generation_config.json");
    match path.is_file() {
        true => Ok((Config::read(&path)?, true)),
        false => Ok((model.text_config()?, false)),
    }
}

impl GenerateOptions {
    /// What a model's files ask for, and nothing else.
    ///
    /// # Errors
    /// When a file isn't JSON, a field isn't what it should be, or one asks for what isn't
    /// implemented.
    pub fn asked(model: &Model) -> Result<Self> {
        let (config, is_own) = asked(model)?;
        let repetition_penalty = config.positive("repetition_penalty")?.unwrap_or(1.0);
        let forced = match is_own {
            true => Forced::of(&config)?,
            false => Forced::of_model(&config, model.architecture.forced_eos_token_id)?,
        };
        let sampling = Sampling { repetition_penalty, ..Sampling::default() };
        Ok(Self { sampling, forced, barred: Barred::of(&config)?, ..Self::default() })
    }
}

/// What an encoder-decoder's generation begins with: what is asked for, or else what its targets do;
/// `None` for other models.
///
/// # Errors
/// When a file isn't JSON or neither names a token.
pub fn generation_start(model: &Model) -> Result<Option<u32>> {
    let start = model.target_start()?;
    match (start, asked(model)?) {
        (Some(_), (config, true)) => Ok(config.token_id("decoder_start_token_id")?.or(start)),
        _ => Ok(start),
    }
}

/// Tokens that take a fixed place in what is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forced {
    /// `forced_bos_token_id`: follows a sequence's first token.
    pub second: Option<u32>,
    /// `forced_eos_token_id`: the last of `max_new_tokens`.
    pub last: Option<u32>,
}

impl Forced {
    fn of(config: &Config) -> Result<Self> {
        Ok(Self {
            second: config.token_id("forced_bos_token_id")?,
            last: config.token_id("forced_eos_token_id")?,
        })
    }

    /// What the model's own config says, with what it means where it is silent about the last one.
    fn of_model(config: &Config, last: Option<u32>) -> Result<Self> {
        let mut forced = Self::of(config)?;
        if config.switch_or("force_bos_token_to_be_generated", false)? {
            forced.second = config.token_id("bos_token_id")?;
        }
        if !config.fields().contains_key("forced_eos_token_id") {
            forced.last = last;
        }
        Ok(forced)
    }

    /// The token of a step of a sequence that has `seen` tokens.
    pub(super) fn at(self, step: usize, seen: usize, max_new_tokens: usize) -> Option<u32> {
        let last = self.last.filter(|_| step + 1 == max_new_tokens);
        last.or(self.second.filter(|_| seen == 1))
    }
}

/// Tokens that can't be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Barred {
    /// `suppress_tokens`.
    pub always: Vec<u32>,
    /// `begin_suppress_tokens`: as a sequence's first.
    pub first: Vec<u32>,
    /// `bad_words_ids`: the last token of each, behind its others.
    pub words: Vec<Vec<u32>>,
    /// `no_repeat_ngram_size`: no so many tokens come twice; 0 allows all.
    pub ngram: usize,
    /// `min_length`: no shorter sequence ends.
    pub length: usize,
    /// `min_new_tokens`: nor one with fewer new tokens.
    pub new: usize,
}

/// Fields that change what is chosen and aren't implemented, and the number that asks for nothing.
const UNKNOWN: [(&str, f64); 6] = [
    ("guidance_scale", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("sequence_bias", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("watermarking_config", 0.0),
];

impl Barred {
    fn of(config: &Config) -> Result<Self> {
        for (key, nothing) in UNKNOWN {
            if config.get(key).is_some_and(|value| value.as_f64() != Some(nothing)) {
                return Err(config.not_implemented(key, "null"));
            }
        }
        Ok(Self {
            always: config.token_ids("suppress_tokens")?,
            first: config.token_ids("begin_suppress_tokens")?,
            words: words(config)?,
            ngram: config.count_or_none("no_repeat_ngram_size")?.unwrap_or_default(),
            length: config.count_or_none("min_length")?.unwrap_or_default(),
            new: config.count_or_none("min_new_tokens")?.unwrap_or_default(),
        })
    }

    /// Takes the step's tokens from the choice, for a sequence that has `seen` tokens.
    pub(super) fn apply(&self, logits: &mut [f32], step: usize, seen: &[u32], ends: &[u32]) {
        let mut bar = |token: u32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        self.always.iter().copied().for_each(&mut bar);
        if step == 0 {
            self.first.iter().copied().for_each(&mut bar);
        }
        if seen.len() < self.length || step < self.new {
            ends.iter().copied().for_each(&mut bar);
        }
        for word in &self.words {
            if let Some((last, before)) = word.split_last().filter(|(_, b)| seen.ends_with(b)) {
                // What ends a text isn't a word.
                if !(before.is_empty() && ends.contains(last)) {
                    bar(*last);
                }
            }
        }
        if let Some(before) = self.ngram.checked_sub(1).and_then(|n| seen.len().checked_sub(n)) {
            let begun = seen.get(before..).unwrap_or_default();
            for ngram in seen.windows(self.ngram).filter(|ngram| ngram.starts_with(begun)) {
                ngram.last().copied().into_iter().for_each(&mut bar);
            }
        }
    }
}

fn words(config: &Config) -> Result<Vec<Vec<u32>>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let word = |v: &Value| v.as_array()?.iter().map(id).collect::<Option<Vec<u32>>>();
    let Some(list) = config.get("bad_words_ids") else { return Ok(Vec::new()) };
    let words = list.as_array().and_then(|list| list.iter().map(word).collect());
    words.ok_or_else(|| config.wrong("bad_words_ids", "a list of lists of token ids"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_barred_depends_on_what_was_seen() {
        let barred = Barred {
            always: vec![0],
            first: vec![1],
            words: vec![vec![2], vec![5, 3]],
            ngram: 2,
            length: 4,
            new: 1,
        };
        let left = |step, seen: &[u32]| -> Vec<usize> {
            let mut logits = [0.0; 8];
            barred.apply(&mut logits, step, seen, &[7]);
            (0..8).filter(|i| logits[*i] == 0.0).collect()
        };
        assert_eq!(left(0, &[5]), [4, 5, 6], "a begun word, a beginning, an early end");
        assert_eq!(left(1, &[6, 4, 1, 6]), [1, 3, 5, 6, 7], "6 and 4 stood together before");
        assert_eq!(left(1, &[6, 4]), [1, 3, 4, 5, 6], "an early end");
    }
}
