//! What can go wrong below the models.

use candle_core::DType;

/// An error of the tape, an operation or a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error("`{op}`: {what} is {found:?}; it must be {must_be}")]
    Shape { op: &'static str, what: &'static str, found: Vec<usize>, must_be: String },
    #[error("`{op}`: {what} has dtype {found:?}; it must be {must_be}")]
    Dtype { op: &'static str, what: &'static str, found: DType, must_be: &'static str },
    #[error("`{op}`: index {index} at place {place} is outside 0..{len}")]
    Index { op: &'static str, index: usize, place: usize, len: usize },
    #[error("`{op}`: the dropout probability is {p}; it must be at least 0 and less than 1")]
    Probability { op: &'static str, p: f32 },
    #[error("the backward pass was asked for a value that no trainable parameter leads to")]
    NothingToDifferentiate,
    #[error("`{op}` was differentiated twice; its saved tensors are gone after the first pass")]
    AlreadyDifferentiated { op: &'static str },
    #[error("device `{name}`: {what}")]
    Device { name: String, what: String },
    #[error("`{path}`: cannot map the file: {source}")]
    Map { path: String, source: std::io::Error },
    #[error("`{path}`: tensor bytes {start}..{end} lie outside the file of {len} bytes")]
    OutsideFile { path: String, start: usize, end: usize, len: usize },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
