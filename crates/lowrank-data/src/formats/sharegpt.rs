//! ShareGPT: a list of messages whose role and content keys the entry's `tags` name.
//! Reference: LLaMA-Factory 0.9.5 `data/converter.py`, `SharegptDatasetConverter`.

use serde_json::Value;

use super::media::images;
use super::messages::{check_order, part, system, tools};
use super::parts::PartReader;
use crate::conversation::{Conversation, Message, Response, Role};
use crate::dataset_info::{DatasetEntry, Names};
use crate::error::RowProblem;
use crate::record::{Record, wrong_type};

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<Conversation, RowProblem> {
    let field = entry.columns.get("messages").unwrap_or("conversations");
    let tags = Tags { tags: &entry.tags, field };
    let mut parts = tags.part_reader(entry)?;
    let list = parts.plain_all(record.require_list(field)?, field)?;
    let (own_system, rest) = tags.split_system(&list)?;
    let messages =
        rest.iter().enumerate().map(|(i, m)| tags.message(m, i)).collect::<Result<Vec<_>, _>>()?;
    let system = match own_system {
        Some(text) => text,
        None => system(record, entry)?,
    };
    assemble(record, entry, &tags, Turns { system, messages, parts })
}

/// System text and messages, before prompt and answer are told apart.
pub(super) struct Turns<'a> {
    pub(super) system: String,
    pub(super) messages: Vec<Message>,
    /// What read them, and will read answers that stand elsewhere.
    pub(super) parts: PartReader<'a>,
}

/// Splits off the answer: the last message, or the entry's `chosen` and `rejected`.
pub(super) fn assemble(
    record: &Record,
    entry: &DatasetEntry,
    tags: &Tags<'_>,
    turns: Turns<'_>,
) -> Result<Conversation, RowProblem> {
    let (Turns { system, mut messages, mut parts }, field) = (turns, tags.field);
    check_order(&messages, field)?;
    let count = |must_be| RowProblem::MessageCount {
        field: field.to_owned(),
        count: messages.len(),
        must_be,
    };
    let response = if entry.ranking {
        if messages.len() % 2 == 0 {
            return Err(count("the prompt of a pair must end with the user's turn"));
        }
        let mut answer = |role: &'static str| {
            let field = entry.columns.get(role).unwrap_or(role);
            tags.answer(&parts.plain(record.require(field)?.clone(), field)?, field)
        };
        Response::Pair { chosen: answer("chosen")?, rejected: answer("rejected")? }
    } else {
        if messages.len() % 2 == 1 {
            return Err(count("turns must come in pairs, the last one the model's"));
        }
        let none = RowProblem::MessageCount {
            field: field.to_owned(),
            count: 0,
            must_be: "there must be a question and an answer",
        };
        let answer = messages.pop().ok_or(none)?;
        match entry.columns.get("kto_tag") {
            None => Response::Answer(answer),
            Some(field) => {
                let tag = record.require(field)?;
                let desirable =
                    tag.as_bool().ok_or_else(|| wrong_type(field, tag, "true or false"))?;
                Response::Judged { answer, desirable }
            }
        }
    };
    Ok(Conversation {
        at: record.at.clone(),
        system,
        tools: tools(record, entry)?,
        prompt: messages,
        response,
        only_answer: false,
        original: None,
        images: images(record, entry, parts.pictures)?,
    })
}

/// Reads messages by the names in `tags`.
pub(super) struct Tags<'a> {
    pub(super) tags: &'a Names,
    pub(super) field: &'a str,
}

impl<'a> Tags<'a> {
    pub(super) fn part_reader(
        &self,
        entry: &'a DatasetEntry,
    ) -> Result<PartReader<'a>, RowProblem> {
        Ok(PartReader::new(entry, self.key("content_tag")?))
    }

    fn key(&self, tag: &'static str) -> Result<&'a str, RowProblem> {
        self.tags.get(tag).ok_or_else(|| RowProblem::Other {
            message: format!("`tags` of the data set doesn't name `{tag}`"),
        })
    }

    /// The text of a leading system message, and the messages after it.
    pub(super) fn split_system<'v>(
        &self,
        list: &'v [Value],
    ) -> Result<(Option<String>, &'v [Value]), RowProblem> {
        let (Some(tag), Some((first, rest))) = (self.tags.get("system_tag"), list.split_first())
        else {
            return Ok((None, list));
        };
        let place = format!("{}[0]", self.field);
        if part(first, self.key("role_tag")?, &place)? != tag {
            return Ok((None, list));
        }
        Ok((Some(part(first, self.key("content_tag")?, &place)?.to_owned()), rest))
    }

    pub(super) fn role_of(&self, message: &Value, place: &str) -> Result<Role, RowProblem> {
        let role = part(message, self.key("role_tag")?, place)?;
        let known = [
            ("user_tag", Role::User),
            ("assistant_tag", Role::Assistant),
            ("observation_tag", Role::Observation),
            ("function_tag", Role::Function),
        ];
        let found = known.into_iter().find(|(tag, _)| self.tags.get(tag) == Some(role));
        found.map(|(_, role)| role).ok_or_else(|| {
            let names: Vec<_> = known.iter().filter_map(|(tag, _)| self.tags.get(tag)).collect();
            RowProblem::RoleOrder {
                field: self.field.to_owned(),
                index: 0,
                role: role.to_owned(),
                must_be: format!("the data set's roles are {}", crate::error::list(names)),
            }
        })
    }

    pub(super) fn content_of(&self, message: &Value, place: &str) -> Result<String, RowProblem> {
        Ok(part(message, self.key("content_tag")?, place)?.to_owned())
    }

    fn message(&self, message: &Value, index: usize) -> Result<Message, RowProblem> {
        let place = format!("{}[{index}]", self.field);
        let role = self.role_of(message, &place).map_err(|problem| match problem {
            RowProblem::RoleOrder { field, role, must_be, .. } => {
                RowProblem::RoleOrder { field, index, role, must_be }
            }
            other => other,
        })?;
        Ok(Message { role, content: self.content_of(message, &place)? })
    }

    fn answer(&self, message: &Value, field: &str) -> Result<Message, RowProblem> {
        let role = self.role_of(message, field)?;
        if !role.is_model() {
            return Err(wrong_type(field, message, "a message of the model"));
        }
        Ok(Message { role, content: self.content_of(message, field)? })
    }
}
