//! `target_parameters`: parameters that are adapted without being the weight of a linear layer.
//! Reference: PEFT 0.21.2 `BaseTuner._inject_parameters` and `lora.ParamWrapper`.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::matcher::suffixes;
use super::nearest::nearest;
use super::resolve::last_part;
use super::{ModuleInfo, ModuleKind, TargetError, TargetModule, TargetWarning};
use crate::lora_config::LoraConfig;

/// A parameter's full name, if a module has one that PEFT could adapt or would trip over.
fn parameter_name(module: &ModuleInfo) -> Option<String> {
    match module.kind {
        ModuleKind::Parameter => Some(module.path.clone()),
        ModuleKind::Container | ModuleKind::Other => None,
        _ => Some(format!("{}.weight", module.path)),
    }
}

/// Adds the parameters that `target_parameters` names by the end of their names. Excluded modules
/// and layers don't count here.
pub(super) fn adapt(
    config: &LoraConfig,
    modules: &[ModuleInfo],
    targets: &mut IndexMap<String, TargetModule>,
) -> Result<(), TargetError> {
    let wanted = config.target_parameters.as_deref().unwrap_or_default();
    for module in modules {
        let Some(name) = parameter_name(module) else { continue };
        if !suffixes(&name).any(|suffix| wanted.iter().any(|own| own == suffix)) {
            continue;
        }
        if let Some(why) = obstacle(config, module, targets) {
            return Err(TargetError::Parameter { name, why });
        }
        let target =
            TargetModule { by_parameter: true, ..TargetModule::plain(config, module.kind) };
        targets.insert(module.path.clone(), target);
    }
    Ok(())
}

/// One warning for each entry of `target_parameters` that names nothing.
pub(super) fn entries_without_hits(
    config: &LoraConfig,
    modules: &[ModuleInfo],
) -> Vec<TargetWarning> {
    let names: Vec<String> = modules.iter().filter_map(parameter_name).collect();
    let hits = |entry: &str| names.iter().any(|name| suffixes(name).any(|s| s == entry));
    let is_bare = |module: &&ModuleInfo| module.kind == ModuleKind::Parameter;
    let bare = modules.iter().filter(is_bare).map(|module| last_part(&module.path).to_owned());
    let bare: BTreeSet<String> = bare.collect();
    let known: Vec<String> = bare.into_iter().collect();
    let missing = config.target_parameters.iter().flatten().filter(|entry| !hits(entry));
    missing
        .map(|entry| TargetWarning::EntryWithoutHits {
            field: "target_parameters",
            entry: entry.clone(),
            nearest: nearest(entry, &known),
        })
        .collect()
}

/// Why a parameter can't be adapted.
fn obstacle(
    config: &LoraConfig,
    module: &ModuleInfo,
    targets: &IndexMap<String, TargetModule>,
) -> Option<&'static str> {
    if targets.contains_key(&module.path) {
        return Some("`target_modules` adapts its module already");
    }
    match module.kind {
        ModuleKind::Parameter | ModuleKind::Linear | ModuleKind::Router => {}
        ModuleKind::Norm => return Some("it is a vector; LoRA adapts matrices"),
        _ => return Some("PEFT's way with it isn't implemented; use `target_modules`"),
    }
    // PEFT refuses what it can't fold into the parameter.
    let refused = [
        (config.lora_dropout.as_f64() > 0.0, "`lora_dropout` has to be 0 for it"),
        (config.fan_in_fan_out, "`fan_in_fan_out` has to be false for it"),
        (config.lora_bias, "`lora_bias` has to be false for it"),
    ];
    refused.into_iter().find_map(|(is_so, why)| is_so.then_some(why))
}

/// Where PEFT's wrapper of an adapted parameter lies: at its module; if several parameters of that
/// module are adapted each wraps the one before it, so that all but the last lie below it.
pub(super) fn wrapper(path: &str, targets: &IndexMap<String, TargetModule>) -> String {
    let module_of = |path: &str| path.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
    let own = module_of(path);
    let place = targets.get_index_of(path).unwrap_or(targets.len());
    let later = targets.iter().skip(place + 1);
    let outer = later
        .filter(|(path, target)| target.kind == ModuleKind::Parameter && module_of(path) == own);
    own.clone() + &".base_layer".repeat(outer.count())
}
