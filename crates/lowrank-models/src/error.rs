//! What can be wrong with a model folder.

use std::path::PathBuf;

/// An error about a model folder or about what a model was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not a model folder: it has no `{missing}`{hint}", path.display())]
    NotAModel { path: PathBuf, missing: &'static str, hint: &'static str },
    #[error("`{file}`: {source}")]
    Json { file: String, source: serde_json::Error },
    #[error("`{file}`: field `{field}` is missing")]
    FieldMissing { file: String, field: String },
    #[error("`{file}`: field `{field}` is {found}; it must be {must_be}")]
    Field { file: String, field: String, found: String, must_be: String },
    #[error(
        "`{file}`: `{field}` is {found}, which changes what the model computes and isn't \
         implemented; known: {known}"
    )]
    NotImplemented { file: String, field: String, found: String, known: String },
    #[error("`{file}`: unknown `model_type` `{found}`{}; known: {known}", near(.nearest))]
    UnknownModelType { file: String, found: String, nearest: Option<String>, known: String },
    #[error("`{model_type}` has no head for the task `{task}`; it has: {known}")]
    NoHead { model_type: String, task: String, known: String },
    #[error("`{file}`: shard name `{name}` isn't a plain `*{extension}` file name")]
    ShardName { file: String, name: String, extension: &'static str },
    #[error("`{file}`: {what}")]
    Weights { file: String, what: String },
    #[error("`{folder}`: tensor `{name}` is missing (looked for {looked_for})")]
    TensorMissing { folder: String, name: String, looked_for: String },
    #[error("`{file}`: tensor `{name}` has shape {found:?}; `config.json` asks for {must_be:?}")]
    TensorShape { file: String, name: String, found: Vec<usize>, must_be: Vec<usize> },
    #[error("{0}")]
    Input(String),
    #[error("cannot write `{}`: {what}", path.display())]
    Write { path: PathBuf, what: String },
    #[error(transparent)]
    Compute(#[from] lowrank_autograd::Error),
}

fn near(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(error.into())
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
