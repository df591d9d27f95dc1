//! Words with a tag each (named entities, parts of speech).

use serde_json::Value;

use super::boxes::{WordBox, boxes};
use super::column;
use crate::dataset_info::DatasetEntry;
use crate::error::{RowProblem, RowRef};
use crate::record::{Record, text, wrong_type};

/// Words with a tag each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedWords {
    /// Where the row comes from.
    pub at: RowRef,
    /// The words.
    pub tokens: Vec<String>,
    /// A tag a word, by name; none when there is only something to predict.
    pub tags: Option<Vec<String>>,
    /// Where its words stand on their page.
    pub boxes: Option<Vec<WordBox>>,
}

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<TaggedWords, RowProblem> {
    let (tokens_field, tags_field) = (column(entry, "tokens"), column(entry, "tags"));
    let tokens = names(&record.require_list(tokens_field)?, tokens_field)?;
    let tags = match record.get(tags_field) {
        None => None,
        Some(_) => Some(names(&record.require_list(tags_field)?, tags_field)?),
    };
    if let Some(tags) = tags.as_ref().filter(|t| t.len() != tokens.len()) {
        return Err(RowProblem::Lengths {
            left: tokens_field.to_owned(),
            left_len: tokens.len(),
            right: tags_field.to_owned(),
            right_len: tags.len(),
        });
    }
    let boxes = boxes(record, entry, (tokens_field, tokens.len()))?;
    Ok(TaggedWords { at: record.at.clone(), tokens, tags, boxes })
}

fn names(list: &[Value], field: &str) -> Result<Vec<String>, RowProblem> {
    let name = |(i, value): (usize, &Value)| {
        let place = format!("{field}[{i}]");
        match value {
            Value::Number(n) if n.is_i64() => Ok(n.to_string()),
            Value::Number(_) => Err(wrong_type(place, value, "a text or a whole number")),
            other => text(other, &place).map(str::to_owned),
        }
    };
    list.iter().enumerate().map(name).collect()
}
