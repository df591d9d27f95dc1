//! Plain text for pretraining, and prompts with a continuation that no template touches.

use super::boxes::{WordBox, boxes, words_in};
use crate::dataset_info::DatasetEntry;
use crate::error::{RowProblem, RowRef};
use crate::formats::column;
use crate::images::PictureSource;
use crate::record::Record;

/// A text to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainText {
    /// Where the row comes from.
    pub at: RowRef,
    /// The text.
    pub text: String,
    /// Where its words stand on their page.
    pub boxes: Option<Vec<WordBox>>,
}

/// A prompt and its continuation; the continuation alone is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Where the row comes from.
    pub at: RowRef,
    /// The text that is given.
    pub prompt: String,
    /// The text to learn.
    pub completion: String,
    /// Its pictures.
    pub images: Vec<PictureSource>,
}

pub(super) fn convert(record: &Record, entry: &DatasetEntry) -> Result<PlainText, RowProblem> {
    let field = column(entry, "text");
    let text = record.require_text(field)?.to_owned();
    let boxes = boxes(record, entry, (field, words_in(&text)))?;
    Ok(PlainText { at: record.at.clone(), text, boxes })
}
