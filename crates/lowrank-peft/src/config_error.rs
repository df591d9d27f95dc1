//! What can be wrong with an adapter configuration, and what is only worth a warning.
//!
//! The rules are those of PEFT 0.21.2's `LoraConfig.__post_init__`, plus the checks of types and
//! bounds that Python leaves to the first crash.

use std::fmt;
use std::path::{Path, PathBuf};

/// A configuration that can't be used, with the file that it came from if there is one.
#[derive(Debug, thiserror::Error)]
#[error("{}{problem}", Place(file.as_deref()))]
pub struct ConfigError {
    /// The adapter_config.json, `None` for a configuration made in memory.
    pub file: Option<PathBuf>,
    /// What is wrong.
    #[source]
    pub problem: ConfigProblem,
}

impl ConfigError {
    /// The same error, said of `file`.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

impl From<ConfigProblem> for ConfigError {
    fn from(problem: ConfigProblem) -> Self {
        Self { file: None, problem }
    }
}

/// Shows where a message belongs: `path: `, or nothing.
struct Place<'a>(Option<&'a Path>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |file| write!(f, "{}: ", file.display()))
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum ConfigProblem {
    #[error("the file can't be read: {0}")]
    Io(#[source] std::io::Error),
    #[error("not valid JSON: {0}")]
    Json(#[source] serde_json::Error),
    #[error("expected a JSON object, found {found}")]
    NotAnObject { found: String },
    #[error("`peft_type` is missing; it names the adapter method, for example \"LORA\"")]
    NoPeftType,
    #[error("`peft_type` is {found}, which PEFT 0.21.2 doesn't know; lowrank reads \"LORA\"")]
    UnknownPeftType { found: String },
    #[error("`peft_type` is `{method}`; only LORA is implemented so far")]
    OtherMethod { method: &'static str },
    #[error("unknown keys {}; LORA has no such fields", ticked(keys))]
    UnknownKeys { keys: Vec<String> },
    #[error("`{field}` is {found}; it must be {must_be}")]
    BadValue { field: String, found: String, must_be: String },
    #[error("`{field}` and `{other}` can't be used together: {why}")]
    Conflict { field: &'static str, other: &'static str, why: &'static str },
    #[error("`{field}` needs `{needs}`, which isn't set")]
    Incomplete { field: &'static str, needs: &'static str },
    #[error("`{field}` is {found}, which changes the result and isn't implemented: {why}")]
    Unsupported { field: &'static str, found: String, why: &'static str },
}

/// Something odd in a configuration that doesn't keep it from being used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum ConfigWarning {
    #[error(
        "unknown keys {} are kept but have no effect; a newer PEFT may have written them",
        ticked(keys)
    )]
    UnknownKeys { keys: Vec<String> },
    #[error("`runtime_config` is ignored: it isn't part of a saved adapter")]
    RuntimeConfig,
    #[error("`{field}` has no effect because `init_lora_weights` is {init}")]
    UnusedInitConfig { field: &'static str, init: String },
    #[error("`alora_invocation_tokens` is only meant for the task CAUSAL_LM")]
    AloraTask,
}

/// Names between backticks, for messages.
pub(crate) fn ticked(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// A JSON value for a message, cut after 60 characters.
pub(crate) fn shown(value: &serde_json::Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return format!("`{text}`");
    }
    let start: String = text.chars().take(60).collect();
    format!("`{start}…`")
}
