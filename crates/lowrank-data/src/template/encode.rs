//! Messages through the slots of a template into token ids.

use super::{CONTENT, NamedToken, Slot, Template};
use crate::conversation::{Conversation, Message, Role};
use crate::error::RowProblem;
use crate::tokenizer::{Special, Tokenizer};

impl Template {
    /// The ids of each message, the first one's with prefix and system text.
    pub(super) fn messages(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        messages: &[Message],
    ) -> Result<Vec<Vec<u32>>, RowProblem> {
        let system = match conversation.system.as_str() {
            "" => self.default_system.as_str(),
            own => own,
        };
        let mut encoded = Vec::with_capacity(messages.len());
        for (i, message) in messages.iter().enumerate() {
            let mut out = Pieces { template: self, tokenizer, ids: Vec::new() };
            let mut inside_user = String::new();
            if i == 0 {
                out.apply(&self.prefix, "")?;
                inside_user = self.opening(system, &conversation.tools, &mut out)?;
            }
            match message.role {
                Role::User => out.apply(&self.user, &(inside_user + &message.content))?,
                Role::Assistant => out.apply(&self.assistant, &message.content)?,
                Role::Observation => out.apply(&self.observation, &message.content)?,
                Role::Function => out.apply(&self.function, &self.calls(&message.content)?)?,
            }
            encoded.push(out.ids);
        }
        Ok(encoded)
    }

    /// Writes system and tool text, or returns it if it belongs into the first user turn.
    fn opening(
        &self,
        system: &str,
        tools: &str,
        out: &mut Pieces<'_>,
    ) -> Result<String, RowProblem> {
        if system.is_empty() && tools.is_empty() {
            return Ok(String::new());
        }
        let mut tool_text = match &self.tools {
            Some(slot) if !tools.is_empty() => slot.replacen(CONTENT, tools, 1),
            _ => self.tool_style.tools(tools, self.now)?,
        };
        if self.strip_tools_without_system && system.is_empty() {
            tool_text = tool_text.trim_start_matches('\n').to_owned();
        }
        let text = format!("{system}{tool_text}");
        if !self.system_in_first_user {
            out.apply(&self.system, &text)?;
            return Ok(String::new());
        }
        Ok(match self.system.first() {
            Some(Slot::Text(slot)) => slot.replacen(CONTENT, &text, 1),
            _ => text,
        })
    }

    /// A function turn: the calls in the tool style, after a thought or other text around them.
    fn calls(&self, content: &str) -> Result<String, RowProblem> {
        let [open, close] = &self.tool_call_words;
        let (around, json) = match between(content, open, close) {
            Some((whole, inner)) => (content.replace(whole, ""), inner.to_owned()),
            None => {
                let [open, close] = &self.thought_words;
                match between(content, open, close) {
                    Some((thought, _)) => (thought.to_owned(), content.replace(thought, "")),
                    None => (String::new(), content.to_owned()),
                }
            }
        };
        Ok(around + &self.tool_style.calls(&json)?)
    }
}

/// The first piece of `text` from `open` to the next `close`: with and without these words.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    let start = text.find(open)?;
    let inner = text.get(start + open.len()..)?;
    let length = inner.find(close)?;
    let whole = text.get(start..start + open.len() + length + close.len())?;
    Some((whole, inner.get(..length)?))
}

/// Encodes slots one by one.
struct Pieces<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
}

impl Pieces<'_> {
    fn apply(&mut self, slots: &[Slot], content: &str) -> Result<(), RowProblem> {
        for slot in slots {
            match slot {
                Slot::Text(text) => {
                    let text = text.replacen(CONTENT, content, 1);
                    if !text.is_empty() {
                        self.ids.extend(self.tokenizer.encode(&text)?);
                    }
                }
                Slot::Special { special } => {
                    let which = match special {
                        NamedToken::BosToken => Special::Bos,
                        NamedToken::EosToken => Special::Eos,
                    };
                    self.ids.extend(self.tokenizer.special_id(which));
                }
                Slot::Token { token } => {
                    let id = self.tokenizer.token_id(token).ok_or_else(|| RowProblem::Other {
                        message: format!(
                            "template `{}` needs the token `{token}`, which the tokenizer lacks",
                            self.template.name
                        ),
                    })?;
                    self.ids.push(id);
                }
            }
        }
        Ok(())
    }
}
