//! Encodes texts with the model's own special tokens around them, as models that aren't chat models
//! take them. Reference: transformers `PreTrainedTokenizerFast.__call__` with `truncation=True`.

use std::collections::BTreeSet;

use tokenizers::Encoding;

use super::{Example, Labels};
use crate::error::{Result, RowRef};
use crate::tokenizer::Tokenizer;

/// Encodes labelled texts, tagged words, and texts with a target text.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    pub(super) tokenizer: Tokenizer,
}

impl TextEncoder {
    /// Cuts texts at `cutoff_len` tokens, special tokens included.
    /// # Errors
    /// A limit that leaves no room for text.
    pub fn new(mut tokenizer: Tokenizer, cutoff_len: usize) -> Result<Self> {
        tokenizer.set_truncation(cutoff_len, None)?;
        Ok(Self { tokenizer })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn example(&self, encoding: &Encoding, labels: Labels, at: &RowRef) -> Example {
        let types = self.tokenizer.uses_type_ids().then(|| encoding.get_type_ids().to_vec());
        Example {
            input_ids: encoding.get_ids().to_vec(),
            labels,
            token_type_ids: types,
            source: at.clone(),
            cut: cut_tokens(encoding),
        }
    }
}

/// Tokens that were cut: those of the overflowing parts that the encoding itself doesn't hold.
pub(super) fn cut_tokens(encoding: &Encoding) -> usize {
    let places = |part: &Encoding| -> BTreeSet<(usize, u32, (usize, usize))> {
        let sequences = part.get_sequence_ids();
        let words = part.get_word_ids();
        let offsets = part.get_offsets();
        let zipped = sequences.into_iter().zip(words).zip(offsets);
        zipped.filter_map(|((s, w), o)| Some((s?, w.unwrap_or(0), *o))).collect()
    };
    let kept = places(encoding);
    let overflowing: BTreeSet<_> = encoding.get_overflowing().iter().flat_map(places).collect();
    overflowing.difference(&kept).count()
}
