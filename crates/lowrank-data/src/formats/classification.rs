//! A text, or a pair of texts, with a label: a name, a list of names, or a number.

use serde_json::Value;

use super::boxes::{WordBox, boxes, words_in};
use super::column;
use crate::dataset_info::DatasetEntry;
use crate::error::{RowProblem, RowRef};
use crate::record::{Record, text, wrong_type};

/// A label as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// The name of a class.
    Name(String),
    /// The number of a class.
    Integer(i64),
    /// All classes that apply.
    Names(Vec<String>),
    /// A value to predict.
    Number(f64),
}

/// A text or a pair of texts with a label.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledText {
    /// Where the row comes from.
    pub at: RowRef,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// The label; none when there is only something to predict.
    pub label: Option<Label>,
    /// Where its words stand on their page.
    pub boxes: Option<Vec<WordBox>>,
}

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<LabelledText, RowProblem> {
    let field = column(entry, "label");
    let text_field = column(entry, "text");
    let text = record.require_text(text_field)?.to_owned();
    let text_pair = record.text(column(entry, "text_pair"))?.map(str::to_owned);
    let boxes = boxes(record, entry, (text_field, words_in(&text)))?;
    if boxes.is_some() && text_pair.is_some() {
        let message = "the row has boxes and a second text, whose words would have none".to_owned();
        return Err(RowProblem::Other { message });
    }
    Ok(LabelledText {
        at: record.at.clone(),
        text,
        text_pair,
        boxes,
        label: record.get(field).map(|value| label(value, field)).transpose()?,
    })
}

fn label(value: &Value, field: &str) -> Result<Label, RowProblem> {
    match value {
        Value::String(name) => Ok(Label::Name(name.clone())),
        Value::Bool(flag) => Ok(Label::Integer(i64::from(*flag))),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(Label::Integer(integer)),
            (None, Some(x)) => Ok(Label::Number(x)),
            (None, None) => Err(wrong_type(field, value, "a number of ordinary size")),
        },
        Value::Array(names) => {
            let name = |(i, v): (usize, &Value)| match v {
                Value::Number(n) if n.is_i64() => Ok(n.to_string()),
                other => text(other, &format!("{field}[{i}]")).map(str::to_owned),
            };
            Ok(Label::Names(names.iter().enumerate().map(name).collect::<Result<_, _>>()?))
        }
        other => Err(wrong_type(field, other, "a name, a list of names, or a number")),
    }
}
