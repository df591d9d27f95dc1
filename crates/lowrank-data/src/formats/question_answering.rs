//! SQuAD: a question about a context, answered by a piece of it.

use serde_json::Value;

use super::boxes::{WordBox, boxes, words_in};
use super::column;
use crate::dataset_info::DatasetEntry;
use crate::error::{RowProblem, RowRef, describe};
use crate::record::{Record, text, wrong_type};

/// An answer: a piece of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The piece.
    pub text: String,
    /// Where it begins, in characters of the context, as SQuAD counts.
    pub start: usize,
}

/// A question about a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Where the row comes from.
    pub at: RowRef,
    /// The row's own name, which predictions refer to.
    pub id: Option<String>,
    /// The question.
    pub question: String,
    /// The text that may hold the answer.
    pub context: String,
    /// The accepted answers; empty if the context has none.
    pub answers: Vec<Answer>,
    /// Where the context's words stand on their page.
    pub boxes: Option<Vec<WordBox>>,
}

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<Question, RowProblem> {
    let id = match record.get(column(entry, "id")) {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(other) => Some(other.to_string()),
    };
    let context_field = column(entry, "context");
    let context = record.require_text(context_field)?.to_owned();
    let boxes = boxes(record, entry, (context_field, words_in(&context)))?;
    let field = column(entry, "answers");
    let answers = match record.get(field) {
        None => Vec::new(),
        Some(value) => answers(value, field)?,
    };
    for (i, answer) in answers.iter().enumerate() {
        if !stands_at(&context, answer) {
            let message = format!(
                "`{field}`: answer {i} is {}, which isn't what the context has at character {}",
                describe(&Value::from(answer.text.as_str())),
                answer.start
            );
            return Err(RowProblem::Other { message });
        }
    }
    Ok(Question {
        at: record.at.clone(),
        id,
        question: record.require_text(column(entry, "question"))?.to_owned(),
        context,
        answers,
        boxes,
    })
}

fn answers(value: &Value, field: &str) -> Result<Vec<Answer>, RowProblem> {
    let lists = ["text", "answer_start"].map(|key| value.get(key).and_then(Value::as_array));
    let [Some(texts), Some(starts)] = lists else {
        return Err(wrong_type(field, value, "an object with the lists `text` and `answer_start`"));
    };
    if texts.len() != starts.len() {
        return Err(RowProblem::Lengths {
            left: format!("{field}.text"),
            left_len: texts.len(),
            right: format!("{field}.answer_start"),
            right_len: starts.len(),
        });
    }
    let answer = |(i, (piece, start)): (usize, (&Value, &Value))| {
        let place = format!("{field}.answer_start[{i}]");
        let start = start.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
            wrong_type(place, start, "a count of characters from the start of the context")
        })?;
        Ok(Answer { text: text(piece, &format!("{field}.text[{i}]"))?.to_owned(), start })
    };
    texts.iter().zip(starts).enumerate().map(answer).collect()
}

fn stands_at(context: &str, answer: &Answer) -> bool {
    let at = context.char_indices().map(|(at, _)| at).chain([context.len()]).nth(answer.start);
    at.and_then(|at| context.get(at..)).is_some_and(|rest| rest.starts_with(&answer.text))
}
