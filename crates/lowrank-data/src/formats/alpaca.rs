//! Alpaca: an instruction, an optional input below it, an output; earlier turns in `history`.
//! Reference: LLaMA-Factory 0.9.5 `data/converter.py`, `AlpacaDatasetConverter`.

use serde_json::Value;

use super::media::images;
use super::messages::{system, tools};
use crate::conversation::{Conversation, Message, Response, Role};
use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::record::{Record, text, wrong_type};

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<Conversation, RowProblem> {
    let mut prompt = history(record, entry)?;
    let mut parts = Vec::new();
    for role in ["prompt", "query"] {
        let part = entry.columns.get(role).map(|c| record.text(c)).transpose()?.flatten();
        parts.extend(part.filter(|p| !p.is_empty()));
    }
    prompt.push(Message::new(Role::User, parts.join("\n")));
    Ok(Conversation {
        at: record.at.clone(),
        system: system(record, entry)?,
        tools: tools(record, entry)?,
        prompt,
        response: response(record, entry)?,
        only_answer: false,
        original: None,
        images: images(record, entry, Vec::new())?,
    })
}

fn history(record: &Record, entry: &DatasetEntry) -> Result<Vec<Message>, RowProblem> {
    let Some(field) = entry.columns.get("history") else { return Ok(Vec::new()) };
    let turns = match record.get(field) {
        None => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(wrong_type(field, other, "a list of pairs")),
    };
    let mut messages = Vec::with_capacity(2 * turns.len());
    for (i, turn) in turns.iter().enumerate() {
        let place = format!("{field}[{i}]");
        match turn.as_array().map(Vec::as_slice) {
            Some([asked, answered]) => {
                messages.push(Message::new(Role::User, text(asked, &place)?));
                messages.push(Message::new(Role::Assistant, text(answered, &place)?));
            }
            _ => return Err(wrong_type(place, turn, "a pair of texts")),
        }
    }
    Ok(messages)
}

fn response(record: &Record, entry: &DatasetEntry) -> Result<Response, RowProblem> {
    let columns = &entry.columns;
    let answer = |field: &str| Ok(Message::new(Role::Assistant, record.require_text(field)?));
    if let Some(field) = columns.get("kto_tag") {
        let tag = record.require(field)?;
        let desirable = tag.as_bool().ok_or_else(|| wrong_type(field, tag, "true or false"))?;
        let answer = answer(columns.get("response").unwrap_or("output"))?;
        return Ok(Response::Judged { answer, desirable });
    }
    if entry.ranking {
        let chosen = answer(columns.get("chosen").unwrap_or("chosen"))?;
        let rejected = answer(columns.get("rejected").unwrap_or("rejected"))?;
        return Ok(Response::Pair { chosen, rejected });
    }
    let Some(field) = columns.get("response") else { return Ok(Response::None) };
    Ok(match record.text(field)? {
        Some(content) => Response::Answer(Message::new(Role::Assistant, content)),
        None => Response::None,
    })
}
