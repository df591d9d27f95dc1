//! Why a configuration can't be applied to a model, and what deserves a warning.

use super::ModuleKind;
use crate::config_error::{ConfigError, ticked};

/// A configuration that doesn't fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TargetError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("`{field}` has the regular expression `{pattern}`: {why}")]
    Regex { field: &'static str, pattern: String, why: String },
    #[error(
        "`target_modules` is null and PEFT has no default for the model type `{model_type}`; \
         name the modules, the model has {}",
        ticked(available)
    )]
    NoDefault { model_type: String, available: Vec<String> },
    #[error(
        "`target_modules` ({wanted}) matches no module{layers}; the model has {}",
        ticked(available)
    )]
    NothingMatched { wanted: String, layers: String, available: Vec<String> },
    #[error(
        "nothing is left to adapt: {excluded} modules are excluded by `exclude_modules` or \
         `modules_to_save` and `target_modules` ({wanted}) matches no other{layers}"
    )]
    AllExcluded { wanted: String, layers: String, excluded: usize },
    #[error(
        "`{path}` matches `target_modules` but is a {kind}; LoRA adapts Linear, Conv1D and \
             Embedding modules"
    )]
    Unsupported { path: String, kind: ModuleKind },
    #[error(
        "`{path}` can't be adapted in a model of type `{model_type}`, whose kernels read its \
             weight directly; remove `out_proj` and `conv1d` from `target_modules`"
    )]
    Mamba { path: String, model_type: String },
    #[error("the parameter `{name}` matches `target_parameters` but can't be adapted: {why}")]
    Parameter { name: String, why: &'static str },
    #[error(
        "`target_modules` names `{found}` without `{missing}`, but both are part of `{fused}` and \
             can only be adapted together"
    )]
    HalfOfFused { found: String, missing: String, fused: &'static str },
    #[error("`{path}` is an Embedding, which can't have `lora_bias`")]
    EmbeddingBias { path: String },
    #[error(
        "`{path}` would get an adapter although `{saved}` is trained whole by \
             `modules_to_save`; add `{path}` to `exclude_modules`"
    )]
    AdaptedAndSaved { path: String, saved: String },
    #[error(
        "`modules_to_save` entry `{entry}` also ends the name of PEFT's own module \
             `{internal}`, which would be trained whole; write more of the module's path"
    )]
    SavesInternals { entry: String, internal: &'static str },
}

/// Something in a configuration that has no effect on this model, or another than it seems.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TargetWarning {
    #[error(
        "`{field}` entry `{entry}` matches no {}; similar names are {}",
        kind_of(field),
        ticked(nearest)
    )]
    EntryWithoutHits { field: &'static str, entry: String, nearest: Vec<String> },
    #[error("`exclude_modules` excludes no module")]
    ExcludeWithoutHits,
    #[error("`{field}` keys {} match no adapted module", ticked(keys))]
    PatternWithoutHits { field: &'static str, keys: Vec<String> },
    #[error(
        "`{field}` gives `{path}` {now}, but {saved} once the adapter was saved, because files \
         keep the keys sorted; make the keys match different modules"
    )]
    PatternOrder { field: &'static str, path: String, now: String, saved: String },
    #[error("`fan_in_fan_out` is set to {value}, as `{path}` is a {kind}")]
    FanInFanOut { path: String, kind: ModuleKind, value: bool },
}

/// What the entries of a field name.
fn kind_of(field: &str) -> &'static str {
    if field == "target_parameters" { "parameter" } else { "module" }
}
