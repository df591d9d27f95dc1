//! What can go wrong in training.

use std::path::PathBuf;

/// An error of the training side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    #[error(transparent)]
    Peft(#[from] lowrank_peft::Error),
    #[error(transparent)]
    Compute(#[from] lowrank_autograd::Error),
    #[error("`{}`: {what}", path.display())]
    State { path: PathBuf, what: String },
    #[error("{0}")]
    Batch(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(error.into())
    }
}

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
