//! What the formats made of message lists share.

use serde_json::Value;

use crate::conversation::{Message, Role};
use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::python_json;
use crate::record::{Record, text, wrong_type};

/// The system column's text, or nothing.
pub(super) fn system(record: &Record, entry: &DatasetEntry) -> Result<String, RowProblem> {
    let column = entry.columns.get("system");
    let found = column.map(|c| record.text(c)).transpose()?.flatten();
    Ok(found.unwrap_or_default().to_owned())
}

/// The tools column as JSON text; a list or an object is written as Python would.
pub(super) fn tools(record: &Record, entry: &DatasetEntry) -> Result<String, RowProblem> {
    let Some(field) = entry.columns.get("tools") else { return Ok(String::new()) };
    Ok(match record.get(field) {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(list @ (Value::Array(_) | Value::Object(_))) => python_json::dumps(list),
        Some(other) => return Err(wrong_type(field, other, "a JSON list of functions")),
    })
}

/// A field of a message; `place` is the message's own (`conversations[2]`).
pub(super) fn part<'a>(message: &'a Value, key: &str, place: &str) -> Result<&'a str, RowProblem> {
    match message.get(key) {
        Some(value) => text(value, &format!("{place}.{key}")),
        None => {
            let found =
                message.as_object().map(|m| m.keys().map(String::as_str).collect::<Vec<_>>());
            Err(RowProblem::MissingField {
                field: format!("{place}.{key}"),
                found: crate::error::list(found.unwrap_or_default()),
            })
        }
    }
}

/// Checks that user or observation and assistant or function follow each other in turn.
pub(super) fn check_order(messages: &[Message], field: &str) -> Result<(), RowProblem> {
    for (index, message) in messages.iter().enumerate() {
        let model = index % 2 == 1;
        if message.role.is_model() != model {
            let must_be =
                if model { "an assistant or function turn" } else { "a user or observation turn" };
            return Err(RowProblem::RoleOrder {
                field: field.to_owned(),
                index,
                role: name(message.role).to_owned(),
                must_be: format!("{must_be} must stand there"),
            });
        }
    }
    Ok(())
}

fn name(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Observation => "observation",
        Role::Function => "function",
    }
}
