//! Modules that are trained and stored whole, task heads among them, and stored embeddings.

use indexmap::IndexMap;

use super::python_regex::PythonRegex;
use super::resolve::last_part;
use super::{ModelModules, TargetError, TargetModule, is_within};
use crate::lora_config::{LoraConfig, TargetModules};

/// Names under which PEFT stores embeddings if they are adapted.
const EMBEDDING_LAYER_NAMES: [&str; 2] = ["embed_tokens", "lm_head"];

/// Modules that PEFT puts into an adapted layer; PEFT looks for `modules_to_save` among them too.
const INTERNALS: [&str; 8] = [
    "base_layer",
    "default",
    "lora_A",
    "lora_B",
    "lora_dropout",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
];

/// Modules that PEFT puts around the model, searched as well for tasks with a head.
const WRAPPERS: [&str; 2] = ["base_model", "base_model.model"];

/// Adds the heads of the configuration's task. PEFT appends them once more on every load; here
/// those that are listed already are not repeated.
pub(super) fn add_heads(config: &mut LoraConfig) {
    let heads = config.task_type.map_or(&[][..], |task| task.head_names());
    for head in heads {
        let entries = config.modules_to_save.get_or_insert_default();
        if !entries.iter().any(|entry| entry == head) {
            entries.push((*head).to_owned());
        }
    }
}

/// The paths that end with an entry, with or without a dot before it.
pub(super) fn modules_to_save(
    config: &LoraConfig,
    model: &ModelModules<'_>,
    targets: &IndexMap<String, TargetModule>,
) -> Result<Vec<String>, TargetError> {
    let entries: Vec<&String> = config.modules_to_save.iter().flatten().collect();
    check_internals(config, &entries, targets)?;
    let mut saved: Vec<String> = Vec::new();
    for module in model.modules {
        let path = &module.path;
        let hit = entries.iter().any(|entry| path.ends_with(entry.as_str()));
        if hit && !saved.iter().any(|outer| is_within(path, outer)) {
            saved.push(path.clone());
        }
    }
    for path in targets.keys() {
        if let Some(outer) = saved.iter().find(|outer| is_within(path, outer)) {
            let (path, saved) = (path.clone(), outer.clone());
            return Err(TargetError::AdaptedAndSaved { path, saved });
        }
    }
    Ok(saved)
}

fn check_internals(
    config: &LoraConfig,
    entries: &[&String],
    targets: &IndexMap<String, TargetModule>,
) -> Result<(), TargetError> {
    let has_head = config.task_type.is_some_and(|task| !task.head_names().is_empty());
    let inside = INTERNALS.iter().filter(|_| !targets.is_empty());
    let around = WRAPPERS.iter().filter(|_| has_head);
    for internal in inside.chain(around) {
        if let Some(entry) = entries.iter().find(|entry| internal.ends_with(entry.as_str())) {
            return Err(TargetError::SavesInternals { entry: (*entry).clone(), internal });
        }
    }
    Ok(())
}

/// The adapted input and output embeddings, if the targets name an embedding the way PEFT expects.
pub(super) fn embeddings(
    config: &LoraConfig,
    model: &ModelModules<'_>,
    targets: &IndexMap<String, TargetModule>,
) -> Result<Vec<String>, TargetError> {
    let named = match &config.target_modules {
        TargetModules::List(names) => {
            names.iter().any(|name| EMBEDDING_LAYER_NAMES.contains(&name.as_str()))
        }
        TargetModules::Pattern(pattern) => {
            let regex = PythonRegex::full("target_modules", pattern)?;
            model.modules.iter().any(|module| {
                EMBEDDING_LAYER_NAMES.contains(&last_part(&module.path))
                    && regex.is_match(&module.path)
            })
        }
        TargetModules::Default | TargetModules::AllLinear => false,
    };
    let both = [model.input_embedding, model.output_embedding];
    Ok(both
        .into_iter()
        .flatten()
        .filter(|path| named && targets.contains_key(*path))
        .map(str::to_owned)
        .collect())
}
