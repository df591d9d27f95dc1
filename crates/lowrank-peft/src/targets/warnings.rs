//! Entries of a configuration that hit nothing. PEFT passes over most of them in silence.

use super::error::TargetWarning;
use super::matcher::{Matcher, suffixes};
use super::nearest::nearest;
use super::resolve::available_names;
use super::{ModelModules, ModuleInfo};
use crate::lora_config::{ExcludeModules, LoraConfig, TargetModules};

/// One warning for each entry of the user's lists without hits.
pub(super) fn entries_without_hits(
    config: &LoraConfig,
    model: &ModelModules<'_>,
    matcher: &Matcher,
) -> Vec<TargetWarning> {
    let mut warnings = Vec::new();
    if let TargetModules::List(names) = &config.target_modules {
        warnings.extend(missing("target_modules", names.iter(), model, ends_with_name));
    }
    let heads = config.task_type.map_or(&[][..], |task| task.head_names());
    let saved = config.modules_to_save.iter().flatten();
    // A saved configuration lists both `classifier` and `score`, of which a model has one.
    let saved = saved.filter(|entry| !heads.contains(&entry.as_str()));
    let ends_plainly = |module: &ModuleInfo, entry: &str| module.path.ends_with(entry);
    warnings.extend(missing("modules_to_save", saved, model, ends_plainly));
    let excludes_nothing = !model.modules.iter().any(|module| matcher.excludes(&module.path));
    match &config.exclude_modules {
        None => {}
        Some(ExcludeModules::List(names)) if names.is_empty() => {}
        Some(ExcludeModules::Pattern(pattern)) if pattern.is_empty() => {}
        Some(_) if excludes_nothing => warnings.push(TargetWarning::ExcludeWithoutHits),
        Some(ExcludeModules::List(names)) => {
            warnings.extend(missing("exclude_modules", names.iter(), model, ends_with_name));
        }
        Some(ExcludeModules::Pattern(_)) => {}
    }
    warnings
}

fn ends_with_name(module: &ModuleInfo, entry: &str) -> bool {
    suffixes(&module.path).any(|suffix| suffix == entry)
}

fn missing<'a>(
    field: &'static str,
    entries: impl Iterator<Item = &'a String>,
    model: &ModelModules<'_>,
    hits: impl Fn(&ModuleInfo, &str) -> bool,
) -> Vec<TargetWarning> {
    entries
        .filter(|entry| !model.modules.iter().any(|module| hits(module, entry)))
        .map(|entry| TargetWarning::EntryWithoutHits {
            field,
            entry: entry.clone(),
            nearest: nearest(entry, &available_names(model)),
        })
        .collect()
}
