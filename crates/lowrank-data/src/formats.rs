//! Data set formats: how the rows of a file become [`Sample`]s.
//!
//! | formatting | rows |
//! | --- | --- |
//! | `alpaca` | `instruction`, `input`, `output`, with history and system |
//! | `sharegpt` | `conversations` of `from` and `value`, tools, observations |
//! | `openai` | `messages` of `role` and `content`, `tool_calls` |
//! | `trl` | TRL's `messages`, `prompt` and `completion`, `chosen` and `rejected`, `label` |
//! | `text` | `text`, for pretraining |
//! | `classification` | `text`, `text_pair`, `label` |
//! | `tagging` | `tokens`, `tags` |
//! | `question_answering` | SQuAD's `question`, `context`, `answers` |
//!
//! Conversations may come with `images`, pictures or their paths; the last four with `boxes` (`bboxes`,
//! `bbox`): where each word stands on its page. Words are `tokens`, or what white space separates in
//! `text` or `context`.

use crate::conversation::Conversation;
use crate::dataset_info::{DatasetEntry, Names};
use crate::error::{RowProblem, RowRef, list};
use crate::images::PictureSource;
use crate::record::Record;

mod alpaca;
pub(crate) mod boxes;
pub(crate) mod classification;
mod media;
mod messages;
mod openai;
mod parts;
pub(crate) mod question_answering;
mod sharegpt;
pub(crate) mod tagging;
mod text;
mod trl;

pub(crate) use parts::PLACEHOLDER;

pub use boxes::WordBox;
pub use classification::{Label, LabelledText};
pub use question_answering::{Answer, Question};
pub use tagging::TaggedWords;
pub use text::{Completion, PlainText};

/// A row after its format was applied.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// Turns of user and model.
    Conversation(Conversation),
    /// A prompt and its continuation, without any chat template.
    Completion(Completion),
    /// A text to continue.
    Text(PlainText),
    /// A text or a pair of texts with a label.
    Classification(LabelledText),
    /// Words with a tag each.
    Tagging(TaggedWords),
    /// A question about a context.
    QuestionAnswering(Question),
}

impl Sample {
    /// Where the row comes from.
    #[must_use]
    pub fn at(&self) -> &RowRef {
        match self {
            Self::Conversation(c) => &c.at,
            Self::Completion(c) => &c.at,
            Self::Text(t) => &t.at,
            Self::Classification(t) => &t.at,
            Self::Tagging(t) => &t.at,
            Self::QuestionAnswering(q) => &q.at,
        }
    }

    /// Where its words stand on their page.
    #[must_use]
    pub fn boxes(&self) -> Option<&[WordBox]> {
        match self {
            Self::Text(t) => t.boxes.as_deref(),
            Self::Classification(t) => t.boxes.as_deref(),
            Self::Tagging(t) => t.boxes.as_deref(),
            Self::QuestionAnswering(q) => q.boxes.as_deref(),
            Self::Conversation(_) | Self::Completion(_) => None,
        }
    }

    /// Its pictures.
    #[must_use]
    pub fn images(&self) -> &[PictureSource] {
        match self {
            Self::Conversation(c) => &c.images,
            Self::Completion(c) => &c.images,
            _ => &[],
        }
    }
}

/// The format of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formatting {
    /// `alpaca`.
    Alpaca,
    /// `sharegpt`.
    Sharegpt,
    /// `openai`, with LLaMA-Factory's additions to the system text.
    Openai,
    /// `trl`.
    Trl,
    /// `text`.
    Text,
    /// `classification`.
    Classification,
    /// `tagging`.
    Tagging,
    /// `question_answering`.
    QuestionAnswering,
}

impl Formatting {
    pub(crate) const NAMES: &'static str = "`alpaca`, `sharegpt`, `openai`, `trl`, `text`, \
        `classification`, `tagging` or `question_answering`";

    /// The format called `name` in `dataset_info.json`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "alpaca" => Self::Alpaca,
            "sharegpt" => Self::Sharegpt,
            "openai" => Self::Openai,
            "trl" => Self::Trl,
            "text" => Self::Text,
            "classification" => Self::Classification,
            "tagging" => Self::Tagging,
            "question_answering" => Self::QuestionAnswering,
            _ => return None,
        })
    }

    /// The default columns of a format that LLaMA-Factory doesn't have.
    pub(crate) fn own_columns(self) -> Option<Names> {
        Some(Names::of(match self {
            Self::Alpaca | Self::Sharegpt | Self::Openai => return None,
            Self::Trl => &[
                ("messages", "messages"),
                ("prompt", "prompt"),
                ("completion", "completion"),
                ("chosen", "chosen"),
                ("rejected", "rejected"),
                ("kto_tag", "label"),
                ("tools", "tools"),
                ("images", "images"),
            ],
            Self::Text => &[("text", "text")],
            Self::Classification => {
                &[("text", "text"), ("text_pair", "text_pair"), ("label", "label")]
            }
            Self::Tagging => &[("tokens", "tokens"), ("tags", "tags")],
            Self::QuestionAnswering => &[
                ("id", "id"),
                ("question", "question"),
                ("context", "context"),
                ("answers", "answers"),
            ],
        }))
    }

    /// OpenAI's own names, for an `openai` entry without `tags`. LLaMA-Factory would look for
    /// ShareGPT's names there and fail.
    pub(crate) fn default_tags(
        self,
        entry: &serde_json::Map<String, serde_json::Value>,
    ) -> Option<Names> {
        (self == Self::Openai && !entry.contains_key("tags")).then(openai::default_tags)
    }

    /// The format that a file's first row shows, and the columns it uses.
    /// # Errors
    /// A row that fits none of the formats.
    pub fn detect(record: &Record) -> Result<(Self, Names), RowProblem> {
        let has = |name: &str| record.fields.contains_key(name);
        let found = if has("conversations") {
            Self::Sharegpt
        } else if has("messages") || has("completion") || (has("chosen") && has("rejected")) {
            Self::Trl
        } else if has("instruction") {
            Self::Alpaca
        } else if has("question") && has("context") {
            Self::QuestionAnswering
        } else if has("tokens") && (has("tags") || has("ner_tags")) {
            Self::Tagging
        } else if has("text") && has("label") {
            Self::Classification
        } else if has("text") {
            Self::Text
        } else {
            let found = list(record.fields.keys().map(String::as_str));
            let message = format!(
                "the columns {found} fit no known format; describe the file in \
                 dataset_info.json (`formatting` and `columns`)"
            );
            return Err(RowProblem::Other { message });
        };
        Ok((found, found.columns_of(record)))
    }

    fn columns_of(self, record: &Record) -> Names {
        let has = |name: &str| record.fields.contains_key(name);
        match self {
            Self::Sharegpt => {
                let mut columns = vec![("messages", "conversations")];
                columns.extend(
                    ["system", "tools", "images"].into_iter().filter(|c| has(c)).map(|c| (c, c)),
                );
                Names::of(&columns)
            }
            Self::Alpaca => {
                let mut columns = vec![("prompt", "instruction"), ("response", "output")];
                let more = [
                    ("query", "input"),
                    ("system", "system"),
                    ("history", "history"),
                    ("images", "images"),
                ];
                columns.extend(more.into_iter().filter(|(_, c)| has(c)));
                Names::of(&columns)
            }
            Self::Tagging if !has("tags") => {
                Names::of(&[("tokens", "tokens"), ("tags", "ner_tags")])
            }
            // TRL takes one picture's column too.
            Self::Trl if has("image") && !has("images") => {
                self.own_columns().unwrap_or_default().with("images", "image")
            }
            _ => self.own_columns().unwrap_or_default(),
        }
    }

    /// The columns without which no row makes sense; each must occur in some row.
    pub(crate) fn required_columns(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["prompt"],
            Self::Sharegpt | Self::Openai => &["messages"],
            Self::Trl => &[],
            Self::Text => &["text"],
            Self::Classification => &["text", "label"],
            Self::Tagging => &["tokens", "tags"],
            Self::QuestionAnswering => &["question", "context"],
        }
    }

    /// A row in this format.
    /// # Errors
    /// What is wrong with the row, naming the field.
    pub fn convert(self, record: &Record, entry: &DatasetEntry) -> Result<Sample, RowProblem> {
        Ok(match self {
            Self::Alpaca => Sample::Conversation(alpaca::convert(record, entry)?),
            Self::Sharegpt => Sample::Conversation(sharegpt::convert(record, entry)?),
            Self::Openai => Sample::Conversation(openai::convert(record, entry)?),
            Self::Trl => trl::convert(record, entry)?,
            Self::Text => Sample::Text(text::convert(record, entry)?),
            Self::Classification => Sample::Classification(classification::convert(record, entry)?),
            Self::Tagging => Sample::Tagging(tagging::convert(record, entry)?),
            Self::QuestionAnswering => {
                Sample::QuestionAnswering(question_answering::convert(record, entry)?)
            }
        })
    }
}

/// The name of the column that plays `role`; every format names the ones it needs by default.
pub(crate) fn column<'a>(entry: &'a DatasetEntry, role: &'static str) -> &'a str {
    entry.columns.get(role).unwrap_or(role)
}
