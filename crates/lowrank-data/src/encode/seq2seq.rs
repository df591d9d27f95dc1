//! Text to text for encoder-decoder models. Reference: transformers
//! `examples/pytorch/summarization/run_summarization.py`: input and target are encoded apart, each
//! with the tokenizer's own special tokens.

use super::{Example, Labels, TextEncoder, answer, as_conversation};
use crate::conversation::Role;
use crate::error::RowProblem;
use crate::formats::Sample;

impl TextEncoder {
    /// The prompt's tokens, and the answer's as target; each is cut at `cutoff_len`, keeping what
    /// the tokenizer puts at its end. No chat template is applied: the prompt is the user's text,
    /// behind the system text, if there is one.
    /// # Errors
    /// A conversation of more than one turn, or one without an answer.
    pub fn seq2seq(&self, sample: &Sample) -> Result<Example, RowProblem> {
        let conversation = as_conversation(sample)?;
        let answer = answer(&conversation)?;
        let prompt = match conversation.prompt.as_slice() {
            [only] if only.role == Role::User => only.content.as_str(),
            _ => {
                let message = "an encoder-decoder model takes one prompt and one answer a row";
                return Err(RowProblem::Other { message: message.to_owned() });
            }
        };
        let source = match conversation.system.as_str() {
            "" => prompt.to_owned(),
            system => format!("{system}\n{prompt}"),
        };
        let target = self.tokenizer.encoding(&answer.content, None, true)?;
        let kept_target = self.cut(&target)?.ids;
        let cut_target = target.len() - kept_target.len();
        let source = self.tokenizer.encoding(&source, None, true)?;
        let kept = self.cut(&source)?;
        let labels = Labels::Target(kept_target);
        let mut example = self.example(kept, source.len(), labels, &conversation.at);
        example.token_type_ids = None;
        example.cut += cut_target;
        Ok(example)
    }
}
