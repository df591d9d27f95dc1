//! Pairs for `rm` and `dpo`, judged answers for `kto`, prompts for `ppo`, `grpo` and prediction.
//! Reference: LLaMA-Factory 0.9.5 `data/processor/pairwise.py`, `feedback.py`, `unsupervised.py`.

use super::truncate::infer_seqlen;
use super::{Encoder, Example, IGNORE_INDEX, Labels, as_conversation, labels_of, unfit};
use crate::conversation::{Conversation, Message, Response};
use crate::error::RowProblem;
use crate::formats::Sample;

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PairExample {
    /// Prompt and better answer.
    pub chosen: Example,
    /// Prompt and worse answer.
    pub rejected: Example,
}

/// A judged answer, and the same prompt with another row's answer for the KL term.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedExample {
    /// Prompt and answer.
    pub example: Example,
    /// Prompt and the mismatched answer.
    pub kl: Example,
    /// Whether the answer is a good one.
    pub desirable: bool,
}

impl Encoder {
    /// A preference pair; both answers are cut to what the longer one would keep.
    /// # Errors
    /// A row that isn't a pair, or one that the template refuses.
    pub fn pair(&self, sample: &Sample) -> Result<PairExample, RowProblem> {
        let conversation = as_conversation(sample)?;
        let Response::Pair { chosen, rejected } = &conversation.response else {
            return Err(unfit("pairs (`ranking`, or `chosen` and `rejected`)"));
        };
        let (prompt, chosen) = self.prompt_and_answer(&conversation, chosen)?;
        let (_, rejected) = self.prompt_and_answer(&conversation, rejected)?;
        let longer = chosen.len().max(rejected.len());
        let kept = infer_seqlen(prompt.len(), longer, self.options.cutoff_len);
        let example = |answer: &[u32]| self.join(&conversation, &prompt, answer, kept);
        Ok(PairExample { chosen: example(&chosen)?, rejected: example(&rejected)? })
    }

    /// A judged answer with `kl_answer`, the answer of the row before it (of the last row, for
    /// the first).
    /// # Errors
    /// A row that isn't judged, or one that the template refuses.
    pub fn judged(
        &self,
        sample: &Sample,
        kl_answer: &Message,
    ) -> Result<JudgedExample, RowProblem> {
        let conversation = as_conversation(sample)?;
        let Response::Judged { answer, desirable } = &conversation.response else {
            return Err(unfit("judged answers (`kto_tag`, or `label` in TRL's shape)"));
        };
        let example = |answer: &Message| {
            let (prompt, answer) = self.prompt_and_answer(&conversation, answer)?;
            let kept = infer_seqlen(prompt.len(), answer.len(), self.options.cutoff_len);
            self.join(&conversation, &prompt, &answer, kept)
        };
        Ok(JudgedExample {
            example: example(answer)?,
            kl: example(kl_answer)?,
            desirable: *desirable,
        })
    }

    /// A prompt to continue, with the tokens of the row's own answer, if any, as target.
    /// # Errors
    /// A row that the template refuses.
    pub fn prompt(&self, sample: &Sample) -> Result<Example, RowProblem> {
        let conversation = as_conversation(sample)?;
        let known = conversation.own_answer();
        let mut prompt = self.chat.prompt(&self.tokenizer, &conversation)?;
        let mut answer = match known {
            Some(answer) => self.prompt_and_answer(&conversation, answer)?.1,
            None => Vec::new(),
        };
        let kept = infer_seqlen(prompt.len(), answer.len(), self.options.cutoff_len);
        let cut = prompt.len() + answer.len() - kept.0 - kept.1;
        prompt.truncate(kept.0);
        answer.truncate(kept.1);
        let labels = known.map_or(Labels::None, |_| Labels::Target(answer));
        Ok(Example::new(prompt, labels, conversation.at.clone(), cut))
    }

    fn prompt_and_answer(
        &self,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<(Vec<u32>, Vec<u32>), RowProblem> {
        let turns = self.chat.oneturn(&self.tokenizer, conversation, answer)?;
        let (prompt, mut answer) = turns.pairs.into_iter().next().unwrap_or_default();
        if self.chat.efficient_eos() {
            answer.push(self.eos()?);
        }
        Ok((prompt, answer))
    }

    fn join(
        &self,
        conversation: &Conversation,
        prompt: &[u32],
        answer: &[u32],
        kept: (usize, usize),
    ) -> Result<Example, RowProblem> {
        let cut_prompt = prompt.get(..kept.0).unwrap_or(prompt);
        let cut_answer = answer.get(..kept.1).unwrap_or(answer);
        let mut labels = vec![IGNORE_INDEX; cut_prompt.len()];
        labels.extend(labels_of(cut_answer)?);
        let ids = [cut_prompt, cut_answer].concat();
        let cut = prompt.len() + answer.len() - ids.len();
        Ok(Example::new(ids, Labels::Tokens(labels), conversation.at.clone(), cut))
    }
}
