//! What can go wrong when an adapter meets a model.

use std::path::PathBuf;

use crate::{adapter_names::TensorNameError, config_error::ConfigError, targets::TargetError};

/// An error about an adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not an adapter folder: it has no `{missing}`{hint}", path.display())]
    NotAnAdapter { path: PathBuf, missing: &'static str, hint: &'static str },
    #[error("`{}`: {source}", path.display())]
    Safetensors { path: PathBuf, source: candle_core::Error },
    #[error("`{}` {what}", path.display())]
    TorchFile { path: PathBuf, what: String },
    #[error("`{}`: {source}", path.display())]
    TensorName { path: PathBuf, source: TensorNameError },
    #[error(
        "`{}` doesn't fit this model:{}{}", path.display(),
        listed("missing", missing), listed("unexpected", unexpected)
    )]
    Unbound { path: PathBuf, missing: Vec<String>, unexpected: Vec<String> },
    #[error("`{}`: tensor `{name}` has shape {found:?}; this model asks for {must_be:?}", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, must_be: Vec<usize> },
    #[error(
        "the adapter has other numbers for `{name}`, which isn't trained, than this model; it \
         belongs to another one"
    )]
    Buffer { name: String },
    #[error("there is no adapter named `{name}`; loaded: {known}")]
    NoSuchAdapter { name: String, known: String },
    #[error("there is an adapter named `{name}` already; choose another name or delete it first")]
    NameTaken { name: String },
    #[error(
        "two adapters with `bias` other than \"none\" can't share a model: `{first}`, `{second}`"
    )]
    TwoBiases { first: String, second: String },
    #[error(
        "adapter `{name}` has `lora_bias` on `{path}`, a layer without a bias to merge it into; \
         use the adapter unmerged"
    )]
    NoBiasToMerge { name: String, path: String },
    #[error("cannot serialize the adapter: {0}")]
    Serialize(#[from] safetensors::SafeTensorError),
    #[error(transparent)]
    Compute(#[from] lowrank_autograd::Error),
}

fn listed(what: &str, names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" {} tensors {what}: {}{more};", names.len(), shown.join(", "))
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(error.into())
    }
}

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
