//! OpenAI messages as LLaMA-Factory reads them, its additions to the system text included.
//! Reference: LLaMA-Factory 0.9.5 `data/converter.py`, `OpenAIDatasetConverter`.

use serde_json::Value;

use super::messages::{system, tools};
use super::sharegpt::{Tags, Turns, assemble};
use crate::conversation::{Conversation, Message, Role};
use crate::dataset_info::{DatasetEntry, Names};
use crate::error::RowProblem;
use crate::python_json;
use crate::record::Record;

/// What separates the results of several calls made at once.
const BETWEEN_RESULTS: &str = "\n</tool_response>\n<tool_response>\n";
const THINKING_OFF: &str = "detailed thinking off";
const THINKING_ON: &str = "detailed thinking on";

/// The names that OpenAI's own messages use.
pub(super) fn default_tags() -> Names {
    Names::of(&[
        ("role_tag", "role"),
        ("content_tag", "content"),
        ("user_tag", "user"),
        ("assistant_tag", "assistant"),
        ("observation_tag", "tool"),
        ("function_tag", "function"),
        ("system_tag", "system"),
    ])
}

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<Conversation, RowProblem> {
    let field = entry.columns.get("messages").unwrap_or("messages");
    let tags = Tags { tags: &entry.tags, field };
    let mut parts = tags.part_reader(entry)?;
    let list = parts.plain_all(record.require_list(field)?, field)?;
    let (own_system, rest) = tags.split_system(&list)?;
    let system = match own_system {
        Some(text) => text,
        None => system(record, entry)?,
    };
    let with_tools = !tools(record, entry)?.is_empty();
    let system = with_thinking_phrase(system, with_tools);
    let messages = messages(&tags, rest)?;
    assemble(record, entry, &tags, Turns { system, messages, parts })
}

/// LLaMA-Factory states in every system text that thinking is off, unless the text says
/// otherwise or there are tools.
fn with_thinking_phrase(system: String, with_tools: bool) -> String {
    match (system.is_empty(), with_tools) {
        (true, true) => system,
        (true, false) => THINKING_OFF.to_owned(),
        (false, true) => system + "\n",
        (false, false) if system.contains(THINKING_ON) || system.contains(THINKING_OFF) => system,
        (false, false) => format!("{system}\n{THINKING_OFF}"),
    }
}

/// Messages with `tool_calls` as function turns, and consecutive results as one observation.
pub(super) fn messages(tags: &Tags<'_>, list: &[Value]) -> Result<Vec<Message>, RowProblem> {
    let mut messages: Vec<Message> = Vec::with_capacity(list.len());
    let mut results: Vec<String> = Vec::new();
    for (index, message) in list.iter().enumerate() {
        let place = format!("{}[{index}]", tags.field);
        let mut role = tags.role_of(message, &place)?;
        let content = match calls(message).filter(|_| role.is_model()) {
            Some(calls) => {
                role = Role::Function;
                calls
            }
            None => tags.content_of(message, &place)?,
        };
        if role == Role::Observation {
            results.push(content);
            continue;
        }
        if !results.is_empty() {
            messages.push(Message::new(Role::Observation, results.join(BETWEEN_RESULTS)));
            results.clear();
        }
        messages.push(Message { role, content });
    }
    // Results after the last answer have nobody to read them.
    Ok(messages)
}

/// The `function` objects of a message's `tool_calls` as a JSON list.
fn calls(message: &Value) -> Option<String> {
    let calls = message.get("tool_calls")?.as_array().filter(|c| !c.is_empty())?;
    let functions = calls.iter().map(|c| c.get("function").unwrap_or(c).clone()).collect();
    Some(python_json::dumps(&Value::Array(functions)))
}
