//! Turns as (prompt, answer) pairs, with the thoughts that reasoning templates add and remove.
//! Reference: LLaMA-Factory 0.9.5 `data/template.py`, `ReasoningTemplate`.

use super::{Reasoning, Template};
use crate::conversation::{Conversation, Message};
use crate::error::RowProblem;
use crate::tokenizer::Tokenizer;

/// Token ids of a prompt and of the answer to it.
pub(crate) type Turn = (Vec<u32>, Vec<u32>);

impl Template {
    /// All turns, each with its answer.
    pub(crate) fn multiturn(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<Vec<Turn>, RowProblem> {
        let mut messages = conversation.with_answer(answer);
        let last = messages.len().saturating_sub(1);
        let only_last = self.mask_history && !self.preserve_thinking;
        let remove_earlier = self.enable_thinking == Some(false) || only_last;
        for (i, message) in messages.iter_mut().enumerate() {
            let remove =
                if i == last { self.enable_thinking == Some(false) } else { remove_earlier };
            if i % 2 == 1 && remove {
                self.remove_thought(message);
            }
        }
        let mut encoded = self.messages(tokenizer, conversation, &messages)?.into_iter();
        let mut turns = Vec::with_capacity(messages.len() / 2);
        while let (Some(prompt), Some(answer)) = (encoded.next(), encoded.next()) {
            turns.push((prompt, answer));
        }
        let count = turns.len();
        for (k, turn) in turns.iter_mut().enumerate() {
            if only_last && k + 1 < count {
                continue;
            }
            if let Some(answer) = messages.get(2 * k + 1) {
                self.add_empty_thought(tokenizer, answer, turn)?;
            }
        }
        Ok(turns)
    }

    /// The whole prompt as one, and the answer.
    pub(crate) fn oneturn(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<Turn, RowProblem> {
        let mut messages = conversation.with_answer(answer);
        let last = messages.len().saturating_sub(1);
        for (i, message) in messages.iter_mut().enumerate() {
            let remove = if i == last {
                self.enable_thinking == Some(false)
            } else {
                !self.preserve_thinking
            };
            if i % 2 == 1 && remove {
                self.remove_thought(message);
            }
        }
        let mut encoded = self.messages(tokenizer, conversation, &messages)?;
        let answer = encoded.pop().unwrap_or_default();
        let mut turn = (encoded.concat(), answer);
        if let Some(answer) = messages.last() {
            self.add_empty_thought(tokenizer, answer, &mut turn)?;
        }
        Ok(turn)
    }

    /// Deletes thoughts from an answer, and the newlines after them.
    fn remove_thought(&self, message: &mut Message) {
        if self.reasoning.is_none() {
            return;
        }
        let [open, close] = &self.thought_words;
        let mut kept = String::new();
        let mut rest = message.content.as_str();
        while let Some((start, end)) = thought(rest, open, close) {
            kept.push_str(rest.get(..start).unwrap_or_default());
            rest = rest.get(end..).unwrap_or_default();
        }
        kept.push_str(rest);
        message.content = kept.trim_start_matches('\n').to_owned();
    }

    /// Gives an answer without any thought an empty one: trained as a part of it, or in the
    /// prompt.
    fn add_empty_thought(
        &self,
        tokenizer: &Tokenizer,
        answer: &Message,
        turn: &mut Turn,
    ) -> Result<(), RowProblem> {
        let Some(reasoning) = self.reasoning else { return Ok(()) };
        let [open, close] = &self.thought_words;
        if [open, close].iter().any(|word| answer.content.contains(word.trim())) {
            return Ok(());
        }
        let text = match reasoning {
            Reasoning::Full => format!("{open}{close}"),
            Reasoning::CloseOnly => close.clone(),
        };
        let thought = tokenizer.encode(&text)?;
        if self.enable_thinking == Some(true) {
            turn.1.splice(..0, thought);
        } else {
            turn.0.extend(thought);
        }
        Ok(())
    }
}

/// Where the first thought begins and ends.
fn thought(text: &str, open: &str, close: &str) -> Option<(usize, usize)> {
    let start = text.find(open)?;
    let inner = start + open.len();
    let end = inner + text.get(inner..)?.find(close)? + close.len();
    Some((start, end))
}
