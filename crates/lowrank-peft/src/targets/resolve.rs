//! `target_modules` before matching: PEFT's defaults, all-linear, and long lists made short.

use std::collections::BTreeSet;

use super::matcher::suffixes;
use super::{ModelModules, ModuleKind, TargetError};
use crate::default_targets::default_target_modules;
use crate::lora_config::{LoraConfig, TargetModules};
use crate::task_type::TaskType;

/// Model types in which `out_proj` and `conv1d` can't be adapted: their kernels take the weights.
pub(super) const MAMBA_TYPES: [&str; 5] =
    ["falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"];

/// From this length on PEFT shortens a list of targets.
const MIN_TARGET_MODULES_FOR_OPTIMIZATION: usize = 20;

/// What `config.target_modules` stands for in `model`.
pub(super) fn target_modules(
    config: &LoraConfig,
    model: &ModelModules<'_>,
) -> Result<TargetModules, TargetError> {
    let named = match &config.target_modules {
        TargetModules::Default => match default_target_modules(model.model_type) {
            Some(targets) => targets.into(),
            None if config.target_parameters.as_ref().is_some_and(|p| !p.is_empty()) => {
                TargetModules::Default
            }
            None => {
                let (model_type, available) = (model.model_type.to_owned(), available_names(model));
                return Err(TargetError::NoDefault { model_type, available });
            }
        },
        all if all.is_all_linear() => TargetModules::List(all_linear(config, model)),
        other => other.clone(),
    };
    Ok(match named {
        TargetModules::List(names) => TargetModules::List(shortened(names, model)),
        other => other,
    })
}

/// The last part of a path, `q_proj` of `model.layers.0.self_attn.q_proj`.
pub(super) fn last_part(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, last)| last)
}

/// The last parts of all adaptable modules' paths, in the model's order.
pub(super) fn available_names(model: &ModelModules<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for module in model.modules.iter().filter(|module| module.kind.is_adaptable()) {
        let name = last_part(&module.path);
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Every linear layer but the output embeddings, and for SEQ_CLS without those but the head.
pub(super) fn all_linear(config: &LoraConfig, model: &ModelModules<'_>) -> Vec<String> {
    let head = model.output_embedding.or_else(|| {
        let exists = |name: &&str| model.modules.iter().any(|module| module.path == **name);
        let is_seq_cls = config.task_type == Some(TaskType::SeqCls);
        ["score", "classifier"].into_iter().find(exists).filter(|_| is_seq_cls)
    });
    model
        .modules
        .iter()
        .filter(|module| matches!(module.kind, ModuleKind::Linear | ModuleKind::Conv1D))
        .filter(|module| Some(module.path.as_str()) != head)
        .map(|module| module.path.clone())
        .collect()
}

/// A long list reduced to the shortest endings that still tell its modules from all others, as
/// PEFT does. The result can match differently with `layers_to_transform`: full paths, which
/// ignore it, become endings, which don't.
fn shortened(names: Vec<String>, model: &ModelModules<'_>) -> Vec<String> {
    let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    if wanted.len() < MIN_TARGET_MODULES_FOR_OPTIMIZATION {
        return names;
    }
    let is_target = |path: &str| suffixes(path).any(|suffix| wanted.contains(suffix));
    let others: BTreeSet<&str> = model
        .modules
        .iter()
        .map(|module| module.path.as_str())
        .filter(|path| !is_target(path))
        .flat_map(suffixes)
        .collect();
    // PEFT also skips names that an ending found earlier covers. That changes nothing: a covering
    // ending is the name's own shortest one, or another name would have chosen a shorter one.
    let shortest = |name: &&'_ str| {
        let ending = suffixes(name).filter(|ending| !others.contains(ending)).last();
        ending.map(str::to_owned)
    };
    let required: BTreeSet<String> = wanted.iter().filter_map(shortest).collect();
    if required.is_empty() || required.len() >= wanted.len() {
        return names;
    }
    required.into_iter().collect()
}
