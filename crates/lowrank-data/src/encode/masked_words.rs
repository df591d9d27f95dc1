//! Plain text of which some tokens will be hidden. Reference: transformers
//! `examples/pytorch/language-modeling/run_mlm.py`, `--line_by_line`.

use super::{Example, IGNORE_INDEX, Labels, TextEncoder, labels_of, plain_text};
use crate::error::RowProblem;
use crate::formats::Sample;

impl TextEncoder {
    /// A text with its own tokens as labels; special tokens, which are never hidden, have none.
    /// # Errors
    /// A row without a text.
    pub fn masked_words(&self, sample: &Sample) -> Result<Example, RowProblem> {
        let text = plain_text(sample)?;
        let encoding = self.tokenizer.encoding(text, None, true)?;
        let kept = self.cut(&encoding)?;
        let mut labels = labels_of(&kept.ids)?;
        for (label, id) in labels.iter_mut().zip(&kept.ids) {
            if self.tokenizer.is_special(*id) {
                *label = IGNORE_INDEX;
            }
        }
        let boxes = self.boxes(text, &kept, sample.boxes());
        let labels = Labels::Tokens(labels);
        Ok(Example { boxes, ..self.example(kept, encoding.len(), labels, sample.at()) })
    }
}
