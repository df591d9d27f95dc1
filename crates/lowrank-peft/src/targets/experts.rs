//! Configurations from before transformers 5, when each matrix of each expert was a linear layer:
//! what they name is now part of a parameter. Reference: PEFT 0.21.2
//! `transformers_weight_conversion.py`, `_convert_peft_config_moe`.

use std::collections::BTreeSet;

use super::matcher::{Matcher, Verdict};
use super::resolve::{all_linear, last_part};
use super::{ModelModules, ModuleKind, TargetError};
use crate::lora_config::{LoraConfig, Number, TargetModules};

/// The parameter that holds gate and up projection of every expert.
const FUSED: &str = "gate_up_proj";

/// Old names and the parameters that they became part of; the first two are those of [`FUSED`].
type Renamed = [(&'static str, &'static str); 4];

const MIXTRAL: Renamed =
    [("w1", FUSED), ("w3", FUSED), ("w2", "down_proj"), ("gate", "gate.weight")];
const QWEN_MOE: Renamed =
    [("gate_proj", FUSED), ("up_proj", FUSED), ("down_proj", "down_proj"), ("gate", "gate.weight")];

/// The names that changed in models of a type. PEFT has none for `qwen2_moe` itself.
fn renamed(model_type: &str) -> Option<&'static Renamed> {
    match model_type {
        "mixtral" => Some(&MIXTRAL),
        "qwen3_moe" | "deepseek_v3" => Some(&QWEN_MOE),
        _ => None,
    }
}

/// Makes `target_parameters` of the old names among `target_modules`. A pair that was fused has
/// twice the rank and alpha, so that each half keeps its own scale.
pub(super) fn convert(
    config: &mut LoraConfig,
    model: &ModelModules<'_>,
) -> Result<(), TargetError> {
    let Some(renamed) = renamed(model.model_type) else { return Ok(()) };
    let has_parameters = config.target_parameters.as_ref().is_some_and(|p| !p.is_empty());
    let names = match &config.target_modules {
        TargetModules::Default if has_parameters => Vec::new(),
        TargetModules::Default => return Ok(()), // as in the table of defaults
        TargetModules::List(names) => names.clone(),
        all if all.is_all_linear() => linear_names(config, model, renamed),
        _ => match matching_names(config, model, renamed)? {
            names if names.is_empty() => return Ok(()),
            names => names,
        },
    };
    let mut parameters = config.target_parameters.clone().unwrap_or_default();
    let mut halves = BTreeSet::new();
    let mut kept = Vec::new();
    for name in names {
        let Some((old, new)) = renamed.iter().find(|(old, _)| last_part(&name) == *old) else {
            kept.push(name);
            continue;
        };
        if !parameters.iter().any(|own| own == new) {
            parameters.push((*new).to_owned());
        }
        if *new == FUSED {
            halves.insert(*old);
        }
    }
    match halves.len() {
        0 => {}
        1 => {
            let found = halves.into_iter().collect::<String>();
            let missing = renamed.iter().find(|(old, new)| *new == FUSED && *old != found);
            let missing = missing.map_or("", |(old, _)| old).to_owned();
            return Err(TargetError::HalfOfFused { found, missing, fused: FUSED });
        }
        count => {
            let key = format!(r".*\.{FUSED}");
            config.rank_pattern.insert(key.clone(), config.r.saturating_mul(count));
            config.alpha_pattern.insert(key, times(config.lora_alpha, count));
        }
    }
    config.target_parameters = Some(parameters);
    config.target_modules = TargetModules::List(kept);
    Ok(())
}

/// The names of linear layers, and of what used to be some.
fn linear_names(config: &LoraConfig, model: &ModelModules<'_>, renamed: &Renamed) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let linear = all_linear(config, model);
    let linear = linear.iter().map(|path| last_part(path));
    for name in linear.chain(renamed.iter().map(|(old, _)| *old)) {
        if !names.iter().any(|own| own == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The last parts of the paths that a regular expression matches. The matrices that have been fused
/// have no path of their own any more, so that those which they would have are tried.
fn matching_names(
    config: &LoraConfig,
    model: &ModelModules<'_>,
    renamed: &Renamed,
) -> Result<Vec<String>, TargetError> {
    let matcher = Matcher::new(config)?;
    let is_hit = |path: &str| matcher.check(path) == Verdict::Matched;
    let mut names: Vec<String> = Vec::new();
    for module in model.modules.iter().filter(|module| is_hit(&module.path)) {
        let name = last_part(&module.path);
        if !names.iter().any(|own| own == name) {
            names.push(name.to_owned());
        }
    }
    let parameters = model.modules.iter().filter(|module| module.kind == ModuleKind::Parameter);
    for (old, new) in renamed {
        let mut containers = parameters.clone().filter_map(|p| p.path.strip_suffix(new));
        if !names.iter().any(|own| own == old) && containers.any(|c| is_hit(&format!("{c}{old}"))) {
            names.push((*old).to_owned());
        }
    }
    Ok(names)
}

fn times(alpha: Number, count: usize) -> Number {
    match alpha {
        Number::Int(alpha) => Number::Int(alpha.saturating_mul(count as i64)),
        Number::Float(alpha) => Number::Float(alpha * count as f64),
    }
}
