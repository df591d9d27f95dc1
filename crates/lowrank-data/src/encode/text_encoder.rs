//! Encodes texts with the model's own special tokens around them, as models that aren't chat models
//! take them. Reference: transformers `PreTrainedTokenizerFast.__call__` with `truncation=True`.

use tokenizers::Encoding;

use super::boxes::{boxes_of, words_of};
use super::cut::{Cut, Kept};
use super::{Example, Labels};
use crate::error::RowProblem;
use crate::error::RowRef;
use crate::formats::WordBox;
use crate::tokenizer::Tokenizer;

/// Encodes labelled texts, tagged words, and texts with a target text.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    pub(super) tokenizer: Tokenizer,
    cutoff_len: usize,
}

impl TextEncoder {
    /// Cuts texts at `cutoff_len` tokens, special tokens included.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, cutoff_len: usize) -> Self {
        Self { tokenizer, cutoff_len }
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn cut(&self, encoding: &Encoding) -> Result<Kept, RowProblem> {
        Cut::new(encoding, self.tokenizer.truncates_left()).longest_first(self.cutoff_len)
    }

    /// The boxes of a text's tokens.
    pub(super) fn boxes(
        &self,
        text: &str,
        kept: &Kept,
        boxes: Option<&[WordBox]>,
    ) -> Option<Vec<WordBox>> {
        boxes.map(|boxes| boxes_of(&self.tokenizer, &kept.ids, words_of(text, &kept.first), boxes))
    }

    /// An example of what was kept of `length` tokens.
    pub(super) fn example(
        &self,
        kept: Kept,
        length: usize,
        labels: Labels,
        at: &RowRef,
    ) -> Example {
        let cut = length - kept.ids.len();
        Example {
            token_type_ids: self.tokenizer.uses_type_ids().then_some(kept.type_ids),
            ..Example::new(kept.ids, labels, at.clone(), cut)
        }
    }
}
