//! Plain text for pretraining. Reference: LLaMA-Factory 0.9.5
//! `data/processor/pretrain.py`.

use super::{Encoder, Example, Labels, labels_of, plain_text};
use crate::error::{RowProblem, RowRef};
use crate::formats::Sample;
use crate::tokenizer::Special;

/// Ends texts for the `llama3` template, whose `eos_token` ends turns.
const LLAMA3_END_OF_TEXT: &str = "<|end_of_text|>";

impl Encoder {
    /// A text to continue, not packed: begun with `bos_token` if the tokenizer does so, ended with
    /// `eos_token`, cut at `cutoff_len`; every token is trained.
    /// # Errors
    /// A row without a text.
    pub fn pretraining(&self, sample: &Sample) -> Result<Example, RowProblem> {
        let mut text = String::new();
        if self.tokenizer.add_bos_token() {
            text += self.tokenizer.special(Special::Bos).unwrap_or_default();
        }
        text += &self.text_with_end(sample)?;
        let mut ids = self.tokenizer.encode(&text)?;
        let cut = ids.len().saturating_sub(self.options.cutoff_len);
        ids.truncate(self.options.cutoff_len);
        self.trained(ids, sample.at().clone(), cut)
    }

    /// Texts joined end to end and cut into blocks of exactly `cutoff_len` tokens; what is left
    /// over is dropped. With `add_bos_token` the first token of each block is overwritten by
    /// `bos_token`, as LLaMA-Factory does. A block's source is the row it begins in.
    /// # Errors
    /// A row without a text; the row comes with the error.
    pub fn pretraining_blocks(
        &self,
        samples: &[Sample],
    ) -> Result<Vec<Example>, (RowRef, RowProblem)> {
        let size = self.options.cutoff_len;
        let bos = self.tokenizer.bos_id().filter(|_| self.tokenizer.add_bos_token());
        let (mut blocks, mut joined, mut source) = (Vec::new(), Vec::new(), None::<RowRef>);
        for sample in samples {
            let at = sample.at();
            let fail = |problem| (at.clone(), problem);
            let text = self.text_with_end(sample).map_err(fail)?;
            joined.extend(self.tokenizer.encode(&text).map_err(fail)?);
            while joined.len() >= size {
                let rest = joined.split_off(size);
                let mut block = std::mem::replace(&mut joined, rest);
                if let (Some(bos), Some(first)) = (bos, block.first_mut()) {
                    *first = bos;
                }
                let begun = source.take().unwrap_or_else(|| at.clone());
                blocks.push(self.trained(block, begun, 0).map_err(fail)?);
            }
            if source.is_none() && !joined.is_empty() {
                source = Some(at.clone());
            }
        }
        Ok(blocks)
    }

    fn text_with_end(&self, sample: &Sample) -> Result<String, RowProblem> {
        let text = plain_text(sample)?;
        let end = match self.options.template.as_deref() {
            Some("llama3") => LLAMA3_END_OF_TEXT,
            _ => self.tokenizer.special(Special::Eos).unwrap_or_default(),
        };
        Ok(format!("{text}{end}"))
    }

    fn trained(&self, ids: Vec<u32>, source: RowRef, cut: usize) -> Result<Example, RowProblem> {
        let labels = Labels::Tokens(labels_of(&ids)?);
        Ok(Example::new(ids, labels, source, cut))
    }
}
