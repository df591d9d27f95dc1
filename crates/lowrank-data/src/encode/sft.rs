//! Supervised fine-tuning: turns one after the other, labels on the answers.
//! Reference: LLaMA-Factory 0.9.5 `data/processor/supervised.py`.

use super::truncate::infer_seqlen;
use super::{Encoder, Example, IGNORE_INDEX, Labels, answer, as_conversation, labels_of};
use crate::chat::Turns;
use crate::error::RowProblem;
use crate::formats::{Completion, Sample};

impl Encoder {
    /// A conversation, a prompt with a completion, or a plain text for supervised fine-tuning. A
    /// text is a completion of nothing, as TRL's `text` column is: no template touches it.
    /// # Errors
    /// A row without an answer, or one that the template refuses.
    pub fn sft(&self, sample: &Sample) -> Result<Example, RowProblem> {
        if let (Sample::Completion(completion), true) = (sample, self.options.template.is_none()) {
            return self.completion(completion);
        }
        if let Sample::Text(row) = sample {
            let (prompt, completion) = (String::new(), row.text.clone());
            let images = Vec::new();
            return self.completion(&Completion { at: row.at.clone(), prompt, completion, images });
        }
        let conversation = as_conversation(sample)?;
        let answer = answer(&conversation)?;
        let turns = if conversation.only_answer {
            self.chat.oneturn(&self.tokenizer, &conversation, answer)?
        } else {
            self.chat.multiturn(&self.tokenizer, &conversation, answer)?
        };
        let mut ids = Ids { encoder: self, left: self.options.cutoff_len, turns: Vec::new() };
        let cut = ids.take(turns)?;
        let (input_ids, labels) = ids.join()?;
        Ok(Example::new(input_ids, Labels::Tokens(labels), conversation.at.clone(), cut))
    }

    /// A prompt with its completion and no template, as TRL's `SFTTrainer` joins them: the texts
    /// are encoded together, with EOS behind, and every token that reaches into the completion is
    /// trained.
    fn completion(&self, row: &Completion) -> Result<Example, RowProblem> {
        let text = format!("{}{}", row.prompt, row.completion);
        let encoding = self.tokenizer.encoding(&text, None, true)?;
        let mut ids = encoding.get_ids().to_vec();
        let eos = self.eos()?;
        let mut trained: Vec<bool> = encoding
            .get_offsets()
            .iter()
            .map(|(_, end)| self.options.train_on_prompt || *end > row.prompt.len())
            .collect();
        if ids.last() != Some(&eos) {
            ids.push(eos);
            trained.push(true);
        } else if let Some(last) = trained.last_mut() {
            *last = true;
        }
        let cut = ids.len().saturating_sub(self.options.cutoff_len);
        ids.truncate(self.options.cutoff_len);
        let labels = labels_of(&ids)?;
        let labels = labels.iter().zip(trained).map(|(l, t)| if t { *l } else { IGNORE_INDEX });
        Ok(Example::new(ids, Labels::Tokens(labels.collect()), row.at.clone(), cut))
    }
}

/// Collects turns until the limit is reached.
struct Ids<'a> {
    encoder: &'a Encoder,
    left: usize,
    turns: Vec<(Vec<u32>, Vec<i32>)>,
}

impl Ids<'_> {
    /// Takes what fits, from the front, or from the back with `mask_history`; returns how many
    /// tokens were cut.
    fn take(&mut self, turns: Turns) -> Result<usize, RowProblem> {
        let options = &self.encoder.options;
        let total: usize = turns.pairs.iter().map(|(s, t)| s.len() + t.len()).sum();
        let efficient_eos = self.encoder.chat.efficient_eos();
        self.left = self.left.saturating_sub(usize::from(efficient_eos));
        let room = self.left;
        let count = turns.pairs.len();
        for index in 0..count {
            let place = if options.mask_history { count - 1 - index } else { index };
            let Some((source, target)) = turns.pairs.get(place).filter(|_| self.left > 0) else {
                break;
            };
            self.turn(index, source, target)?;
        }
        let cut = total - (room - self.left);
        let tail: Vec<u32> = turns.tail.into_iter().take(self.left).collect();
        let tail_labels = vec![IGNORE_INDEX; tail.len()];
        if options.mask_history {
            self.turns.reverse();
        }
        self.turns.push((tail, tail_labels));
        Ok(cut)
    }

    /// `index` counts in the order of taking: with `mask_history`, 0 is the last turn.
    fn turn(&mut self, index: usize, source: &[u32], target: &[u32]) -> Result<(), RowProblem> {
        let options = &self.encoder.options;
        let (s, t) = infer_seqlen(source.len(), target.len(), self.left);
        let source = source.get(..s).unwrap_or(source);
        let target = target.get(..t).unwrap_or(target);
        self.left -= s + t;
        let mut labels =
            if options.train_on_prompt { labels_of(source)? } else { vec![IGNORE_INDEX; s] };
        if self.encoder.chat.efficient_eos() && index > 0 && !options.train_on_prompt {
            // The answer before has no EOS of its own: the next prompt's first token stands for it.
            let eos = labels_of(&[self.encoder.eos()?])?;
            if let (Some(first), Some(eos)) = (labels.first_mut(), eos.first()) {
                *first = *eos;
            }
        }
        if options.mask_history && index > 0 {
            labels.extend(std::iter::repeat_n(IGNORE_INDEX, t));
        } else {
            labels.extend(labels_of(target)?);
        }
        self.turns.push(([source, target].concat(), labels));
        Ok(())
    }

    fn join(self) -> Result<(Vec<u32>, Vec<i32>), RowProblem> {
        let (mut ids, mut labels) = (Vec::new(), Vec::new());
        for (turn_ids, turn_labels) in self.turns {
            ids.extend(turn_ids);
            labels.extend(turn_labels);
        }
        if self.encoder.chat.efficient_eos() {
            let eos = self.encoder.eos()?;
            labels.extend(labels_of(&[eos])?);
            ids.push(eos);
        }
        Ok((ids, labels))
    }
}
