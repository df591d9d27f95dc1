//! What can go wrong between a data file and an encoded row.
//!
//! A [`DataError`] ends the run; a [`RowProblem`] concerns one row and is either raised as
//! [`DataError::Row`] or counted, when `skip_bad_rows` is set.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result with a [`DataError`].
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Where a row comes from; written into every message about that row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowRef {
    /// The data file.
    pub file: Arc<Path>,
    /// Index of the row in its file, from 0.
    pub row: usize,
    /// Line on which the row begins, from 1, where the file has lines.
    pub line: Option<usize>,
}

impl fmt::Display for RowRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            Some(line) => write!(f, "{file}:{line} (row {})", self.row),
            None => write!(f, "{file} (row {})", self.row),
        }
    }
}

/// An error of the data side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum DataError {
    #[error("can't read `{}`", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {message}", .path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{}: {message}", .path.display())]
    File { path: PathBuf, message: String },
    #[error("{at}: {problem}")]
    Row { at: RowRef, problem: RowProblem },

    #[error(
        "`{}` doesn't exist; write it there with an entry for each data set, e.g. \
         {{\"my_data\": {{\"file_name\": \"my_data.jsonl\"}}}}",
        .path.display()
    )]
    NoDatasetInfo { path: PathBuf },
    #[error("`{}` has no data set `{name}`{}", .path.display(), did_you_mean(.nearest))]
    UnknownDataset { path: PathBuf, name: String, nearest: Option<String> },
    #[error("{}: `{dataset}`: unknown key `{key}`{}", .path.display(), did_you_mean(.nearest))]
    UnknownKey { path: PathBuf, dataset: String, key: String, nearest: Option<String> },
    #[error("{}: `{dataset}`: `{key}` is {found}; it must be {must_be}", .path.display())]
    BadEntry { path: PathBuf, dataset: String, key: String, found: String, must_be: &'static str },
    #[error(
        "{}: `{dataset}` comes from `{key}`, and lowrank opens no network connection; download \
         the data and name the file in `file_name`",
        .path.display()
    )]
    RemoteSource { path: PathBuf, dataset: String, key: String },
    #[error(
        "{}: no row has the column `{column}` (`{role}`); the columns are {found}",
        .path.display()
    )]
    MissingColumn { path: PathBuf, column: String, role: &'static str, found: String },
    #[error("`{dataset}`: no row is left of {read} read{}", because(.first))]
    NoRows { dataset: String, read: usize, first: Option<String> },

    #[error("`{}` has no tokenizer.json, {advice}", .folder.display())]
    NoTokenizer { folder: PathBuf, advice: &'static str },
    #[error("tokenizer of `{}`: {message}", .folder.display())]
    Tokenizer { folder: PathBuf, message: String },

    #[error("unknown template `{name}`{}", did_you_mean(.nearest))]
    UnknownTemplate { name: String, nearest: Option<String> },
    #[error(
        "template `{name}` has a default system text that lowrank doesn't know; set \
         `default_system` (an empty text turns it off)"
    )]
    UnknownDefaultSystem { name: String },
    #[error("unknown tool_format `{name}`{}", did_you_mean(.nearest))]
    UnknownToolFormat { name: String, nearest: Option<String> },
    #[error("the built-in chat templates can't be read: {message}")]
    TemplateTable { message: String },
    #[error("chat template of `{}`: {message}", .folder.display())]
    ChatTemplate { folder: PathBuf, message: String },

    #[error("`{option}`: {message}")]
    Option { option: &'static str, message: String },
    #[error(
        "the data has changed since the checkpoint was written (fingerprint `{now}`, then \
         `{then}`); restore the data or start a new run"
    )]
    DataChanged { now: String, then: String },
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum RowProblem {
    #[error("{message}")]
    Syntax { message: String },
    #[error("no field `{field}`; the row has {found}")]
    MissingField { field: String, found: String },
    #[error("field `{field}` is {found}; it must be {must_be}")]
    WrongType { field: String, found: String, must_be: &'static str },
    #[error("field `{field}`: message {index} has the role `{role}`; {must_be}")]
    RoleOrder { field: String, index: usize, role: String, must_be: String },
    #[error("field `{field}` has {count} messages besides the system's; {must_be}")]
    MessageCount { field: String, count: usize, must_be: &'static str },
    #[error("no answer to train on; {advice}")]
    NoAnswer { advice: &'static str },
    #[error("tools aren't a JSON list of functions: {message}")]
    BadTools { message: String },
    #[error("a function call isn't a JSON object with `name` and `arguments`: {message}")]
    BadFunctionCall { message: String },
    #[error("tool_format `{style}`: {message}")]
    ToolStyle { style: &'static str, message: String },
    #[error("field `{field}` lists films or sounds; lowrank reads texts and pictures only")]
    Media { field: String },
    #[error(
        "field `{field}` is a part of the type `{kind}`; texts and pictures are read (`text`, \
             `image`, `image_url`)"
    )]
    Part { field: String, kind: String },
    #[error("field `{field}`: picture `{picture}`: {message}")]
    Picture { field: String, picture: String, message: String },
    #[error("label `{label}` isn't among the {count} labels{}", did_you_mean(.nearest))]
    UnknownLabel { label: String, count: usize, nearest: Option<String> },
    #[error("`{left}` has {left_len} entries but `{right}` has {right_len}")]
    Lengths { left: String, left_len: usize, right: String, right_len: usize },
    #[error("the tokenizer refused the text: {message}")]
    Tokenize { message: String },
    #[error("the chat template refused the conversation: {message}")]
    Render { message: String },
    #[error("{message}")]
    Other { message: String },
}

impl RowProblem {
    /// The problem at a place.
    #[must_use]
    pub fn at(self, at: &RowRef) -> DataError {
        DataError::Row { at: at.clone(), problem: self }
    }
}

impl DataError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, message: impl fmt::Display) -> Self {
        Self::File { path: path.to_owned(), message: message.to_string() }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}

fn because(first: &Option<String>) -> String {
    first.as_ref().map(|f| format!("; the first was refused: {f}")).unwrap_or_default()
}

/// The known name that is most like `name`, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let scored = known.into_iter().map(|k| (strsim::jaro_winkler(name, k), k));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))?;
    (best.0 > 0.75).then(|| best.1.to_owned())
}

/// What a JSON value is, in words for a message.
pub(crate) fn describe(value: &serde_json::Value) -> String {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match value {
        Null => "null".to_owned(),
        Bool(b) => format!("`{b}`"),
        Number(n) => format!("the number `{n}`"),
        String(s) => format!("the text `{}`", shorten(s)),
        Array(a) => format!("a list of {}", a.len()),
        Object(o) => format!("an object with {}", list(o.keys().map(std::string::String::as_str))),
    }
}

/// Names in backticks, separated by commas.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().map(|n| format!("`{n}`")).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
