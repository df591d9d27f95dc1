//! TRL's shapes: `messages`; `prompt` with `completion`, `chosen` and `rejected`, or `completion`
//! and `label`. Texts or lists of messages. Reference: TRL's "Dataset formats and types".
//!
//! A text prompt with a text completion is not a conversation: no chat template is applied to it
//! unless the recipe names one.

use serde_json::Value;

use super::media::images;
use super::messages::{check_order, tools};
use super::openai::{default_tags, messages};
use super::parts::PartReader;
use super::sharegpt::Tags;
use super::{Completion, Sample};
use crate::conversation::{Conversation, Message, Response, Role};
use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::formats::column;
use crate::images::PictureSource;
use crate::record::{Record, wrong_type};

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<Sample, RowProblem> {
    let row = Row { record, entry };
    if record.get(column(entry, "chosen")).is_some() {
        return row.pair();
    }
    if record.get(column(entry, "messages")).is_some() {
        let turns = row.turns("messages")?;
        return row.conversation(turns, |answer| Ok(Response::Answer(answer)), false);
    }
    row.completion()
}

struct Row<'a> {
    record: &'a Record,
    entry: &'a DatasetEntry,
}

/// Messages as they stand, and as turns after the system message.
#[derive(Default)]
struct Turns {
    field: String,
    system: String,
    messages: Vec<Message>,
    original: Vec<Value>,
    /// Those that parts of messages show.
    pictures: Vec<Option<PictureSource>>,
}

impl Row<'_> {
    /// A column of messages; a text is one message of `role`.
    fn turns_or_text(&self, name: &'static str, role: Role) -> Result<Turns, RowProblem> {
        let field = column(self.entry, name);
        let Value::String(text) = self.record.require(field)? else { return self.turns(name) };
        let messages = vec![Message::new(role, text.as_str())];
        Ok(Turns { field: field.to_owned(), messages, ..Turns::default() })
    }

    fn turns(&self, name: &'static str) -> Result<Turns, RowProblem> {
        let field = column(self.entry, name);
        let names = default_tags();
        let tags = Tags { tags: &names, field };
        let mut parts = PartReader::new(self.entry, "content");
        let original = parts.plain_all(self.record.require_list(field)?, field)?;
        let (system, rest) = tags.split_system(&original)?;
        let messages = messages(&tags, rest)?;
        let system = system.unwrap_or_default();
        let (field, pictures) = (field.to_owned(), parts.pictures);
        Ok(Turns { field, system, messages, original, pictures })
    }

    /// The last message is the answer; a developer's or tool's place is checked like any other.
    fn conversation(
        &self,
        turns: Turns,
        respond: impl FnOnce(Message) -> Result<Response, RowProblem>,
        only_answer: bool,
    ) -> Result<Sample, RowProblem> {
        let Turns { field, system, mut messages, original, pictures } = turns;
        check_order(&messages, &field)?;
        let count = messages.len();
        let answer = messages.pop().filter(|m| m.role.is_model());
        let must_be = "turns must come in pairs, the last one the model's";
        let answer = answer.ok_or(RowProblem::MessageCount { field, count, must_be })?;
        Ok(Sample::Conversation(Conversation {
            at: self.record.at.clone(),
            system,
            tools: tools(self.record, self.entry)?,
            prompt: messages,
            response: respond(answer)?,
            only_answer,
            original: needs_original(&original).then_some(original),
            images: images(self.record, self.entry, pictures)?,
        }))
    }

    fn completion(&self) -> Result<Sample, RowProblem> {
        let (prompt, completion) = (column(self.entry, "prompt"), column(self.entry, "completion"));
        let judged = self.entry.columns.get("kto_tag").and_then(|c| self.record.get(c));
        let texts = (self.record.require(prompt)?, self.record.get(completion));
        if let ((Value::String(prompt), Some(Value::String(completion))), None) = (texts, judged) {
            return Ok(Sample::Completion(Completion {
                at: self.record.at.clone(),
                prompt: prompt.clone(),
                completion: completion.clone(),
                images: images(self.record, self.entry, Vec::new())?,
            }));
        }
        let mut turns = self.turns_or_text("prompt", Role::User)?;
        if texts.1.is_none() {
            return self.prompt_only(turns);
        }
        let answer = self.turns_or_text("completion", Role::Assistant)?;
        if answer.messages.len() != 1 {
            let count = answer.messages.len();
            let must_be = "a completion must be one message of the model";
            return Err(RowProblem::MessageCount { field: answer.field, count, must_be });
        }
        turns.messages.extend(answer.messages);
        turns.original.extend(answer.original);
        turns.pictures.extend(answer.pictures);
        let desirable = judged.map(|tag| {
            let field = self.entry.columns.get("kto_tag").unwrap_or("label");
            tag.as_bool().ok_or_else(|| wrong_type(field, tag, "true or false"))
        });
        let respond = |answer| {
            Ok(match desirable.transpose()? {
                Some(desirable) => Response::Judged { answer, desirable },
                None => Response::Answer(answer),
            })
        };
        self.conversation(turns, respond, true)
    }

    fn prompt_only(&self, turns: Turns) -> Result<Sample, RowProblem> {
        check_order(&turns.messages, &turns.field)?;
        Ok(Sample::Conversation(Conversation {
            at: self.record.at.clone(),
            system: turns.system,
            tools: tools(self.record, self.entry)?,
            prompt: turns.messages,
            response: Response::None,
            only_answer: true,
            original: needs_original(&turns.original).then_some(turns.original),
            images: images(self.record, self.entry, turns.pictures)?,
        }))
    }

    /// `chosen` and `rejected`, whose common beginning is the prompt if there is no `prompt`.
    fn pair(&self) -> Result<Sample, RowProblem> {
        let chosen = self.turns_or_text("chosen", Role::Assistant)?;
        let rejected = self.turns_or_text("rejected", Role::Assistant)?;
        let has_prompt = self.record.get(column(self.entry, "prompt")).is_some();
        let mut turns = if has_prompt {
            self.turns_or_text("prompt", Role::User)?
        } else {
            Turns { system: chosen.system.clone(), ..Turns::default() }
        };
        let skip = if has_prompt { 0 } else { common_prefix(&chosen.messages, &rejected.messages) };
        let last = |mut answer: Turns| {
            let (field, count) = (answer.field, answer.messages.len());
            let must_be = "beyond the common prompt there must be one message of the model";
            let message = answer.messages.pop().filter(|_| count == skip + 1);
            message.ok_or(RowProblem::MessageCount { field, count, must_be })
        };
        turns.messages.extend(chosen.messages.iter().take(skip).cloned());
        turns.pictures.extend(chosen.pictures.iter().cloned());
        let (chosen, rejected) = (last(chosen)?, last(rejected)?);
        turns.messages.push(chosen);
        // Written messages with more than texts can't be rendered for two answers at once.
        turns.original.clear();
        self.conversation(turns, |chosen| Ok(Response::Pair { chosen, rejected }), true)
    }
}

fn common_prefix(a: &[Message], b: &[Message]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Whether messages say more than their role and text.
fn needs_original(messages: &[Value]) -> bool {
    let plain = |key: &String| key == "role" || key == "content";
    messages.iter().any(|m| m.as_object().is_some_and(|m| !m.keys().all(plain)))
}
