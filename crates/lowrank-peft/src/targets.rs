//! Which modules of a model a [`LoraConfig`] adapts, and with which rank and scaling.
//!
//! The rules are those of PEFT 0.21.2's `inject_adapter` and `check_target_module_exists`, replayed
//! in the tests against PEFT itself. What differs on purpose: an entry that matches nothing is
//! reported with similar names, and an adapter inside a module that is trained whole is an error.

use std::fmt;

use indexmap::IndexMap;

use crate::lora_config::{AdapterUse, Bias, LoraConfig, TargetModules};
use crate::task_type::TaskType;

mod error;
mod experts;
mod llamafactory;
mod matcher;
mod nearest;
mod parameters;
mod patterns;
mod python_regex;
mod resolve;
mod saved;
mod warnings;

pub use error::{TargetError, TargetWarning};
pub use llamafactory::llamafactory_all;

use matcher::{Matcher, Verdict};
use patterns::Patterns;
use resolve::{MAMBA_TYPES, available_names, last_part};

/// A `target_modules` that adapts nothing without being an error, PEFT's placeholder.
const DUMMY_TARGET_MODULES: &str = "dummy-target-modules";

/// What a module is, as far as adapters care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// `torch.nn.Linear` and its subclasses, weight `[out, in]`.
    Linear,
    /// transformers' `Conv1D`: a linear layer with the weight `[in, out]`.
    Conv1D,
    /// `torch.nn.Embedding`, weight `[rows, dim]`.
    Embedding,
    /// A normalization layer.
    Norm,
    /// A router of experts, whose weight `[experts, in]` only `target_parameters` can adapt.
    Router,
    /// No module but a parameter, the matrices of experts: `target_parameters` can adapt it. Its
    /// path is the parameter's own.
    Parameter,
    /// A module made of other modules.
    Container,
    /// Anything else: activations, dropout, convolutions.
    Other,
}

impl ModuleKind {
    /// Whether LoRA can adapt such a module.
    pub fn is_adaptable(self) -> bool {
        matches!(self, Self::Linear | Self::Conv1D | Self::Embedding)
    }
}

impl fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One module of the base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its dotted path in the model, for example `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What it is.
    pub kind: ModuleKind,
}

/// The base model as the matching sees it.
#[derive(Debug, Clone, Copy)]
pub struct ModelModules<'a> {
    /// Every module below the root, containers too, in the order of definition, parents first; a
    /// module that is used twice only once. Parameters that hold experts stand among them.
    pub modules: &'a [ModuleInfo],
    /// `model_type` of config.json.
    pub model_type: &'a str,
    /// Path of the embedding of the input tokens.
    pub input_embedding: Option<&'a str>,
    /// Path of the layer that makes logits of a language model (`lm_head`).
    pub output_embedding: Option<&'a str>,
}

/// How one module is adapted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetModule {
    /// What it is: one of the adaptable kinds.
    pub kind: ModuleKind,
    /// Rank of its update.
    pub r: usize,
    /// Alpha, the numerator of the scaling.
    pub lora_alpha: f64,
    /// The factor of the update: alpha/r, with `use_rslora` alpha/sqrt(r).
    pub scaling: f64,
    /// Dropout on the input of A while training.
    pub lora_dropout: f64,
    /// Whether `target_parameters` named it, not `target_modules`.
    pub by_parameter: bool,
}

impl TargetModule {
    /// A module with the configuration's own rank and alpha; its scaling is still to be computed.
    fn plain(config: &LoraConfig, kind: ModuleKind) -> Self {
        Self {
            kind,
            r: config.r,
            lora_alpha: config.lora_alpha.as_f64(),
            scaling: 0.0,
            lora_dropout: config.lora_dropout.as_f64(),
            by_parameter: false,
        }
    }
}

/// What a configuration does to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetPlan {
    /// The adapted modules by path, in the model's order; after them the adapted parameters.
    pub targets: IndexMap<String, TargetModule>,
    /// Paths of the modules that are trained and stored whole, in the model's order. Modules
    /// inside another one of the list are left out.
    pub modules_to_save: Vec<String>,
    /// Paths of adapted embeddings whose base weight PEFT stores too.
    pub saved_embeddings: Vec<String>,
    /// The configuration with what was resolved: named targets, heads, `fan_in_fan_out`. This is
    /// what is saved with the adapter.
    pub config: LoraConfig,
    /// What has no effect on this model.
    pub warnings: Vec<TargetWarning>,
}

/// What happens to a parameter of the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseParameter {
    /// Left as it is.
    Frozen,
    /// A bias trained in place, because of `bias`.
    Bias,
    /// Part of a module that is trained and stored whole.
    Saved,
}

impl TargetPlan {
    /// Where the adapter of a target lies, as the names of its tensors have it: at the module, or
    /// for a parameter where PEFT wraps its module.
    pub fn adapter_path(&self, path: &str) -> String {
        match self.targets.get(path) {
            Some(target) if target.kind == ModuleKind::Parameter => {
                parameters::wrapper(path, &self.targets)
            }
            _ => path.to_owned(),
        }
    }

    /// What happens to the base model's parameter of that full name.
    pub fn base_parameter(&self, name: &str) -> BaseParameter {
        let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        if self.modules_to_save.iter().any(|saved| is_within(module, saved)) {
            return BaseParameter::Saved;
        }
        let trained = match self.config.bias {
            Bias::None => false,
            Bias::All => true,
            Bias::LoraOnly => self.targets.contains_key(module),
        };
        if trained && leaf == "bias" { BaseParameter::Bias } else { BaseParameter::Frozen }
    }
}

/// Applies `config` to `model`.
pub fn plan_targets(
    config: &LoraConfig,
    model: &ModelModules<'_>,
) -> Result<TargetPlan, TargetError> {
    config.validate()?;
    // A new adapter's initialization is the caller's check; everything else belongs to the plan.
    config.check_supported(AdapterUse::Load)?;
    let mut resolved = config.clone();
    // PEFT adds the heads of SEQ_CLS before it matches and those of other tasks after, so only
    // the former are safe from an adapter of their own.
    if config.task_type == Some(TaskType::SeqCls) {
        saved::add_heads(&mut resolved);
    }
    experts::convert(&mut resolved, model)?;
    let config = &resolved.clone();
    let (all, modules) = (model.modules, without_parameters(model.modules));
    let model = &ModelModules { modules: &modules, ..*model };
    resolved.target_modules = resolve::target_modules(config, model)?;
    let matcher = Matcher::new(&resolved)?;
    let (mut targets, excluded) = adapt(&resolved, model, &matcher)?;
    let mut notes = set_fan_in_fan_out(&mut resolved, &targets);
    parameters::adapt(&resolved, all, &mut targets)?;
    if targets.is_empty() && !adapts_nothing(&resolved) {
        return Err(nothing_left(&resolved, model, excluded));
    }
    notes.extend(set_ranks(&resolved, &mut targets)?);
    saved::add_heads(&mut resolved);
    let modules_to_save = saved::modules_to_save(&resolved, model, &targets)?;
    notes.extend(warnings::entries_without_hits(config, model, &matcher));
    notes.extend(parameters::entries_without_hits(config, all));
    let saved_embeddings = saved::embeddings(&resolved, model, &targets)?;
    Ok(TargetPlan { targets, modules_to_save, saved_embeddings, config: resolved, warnings: notes })
}

fn without_parameters(modules: &[ModuleInfo]) -> Vec<ModuleInfo> {
    modules.iter().filter(|module| module.kind != ModuleKind::Parameter).cloned().collect()
}

/// Whether the configuration says so itself.
fn adapts_nothing(config: &LoraConfig) -> bool {
    matches!(&config.target_modules, TargetModules::Pattern(text) if text == DUMMY_TARGET_MODULES)
}

/// The modules that match, all with the configuration's own rank and alpha, and how many are
/// excluded.
fn adapt(
    config: &LoraConfig,
    model: &ModelModules<'_>,
    matcher: &Matcher,
) -> Result<(IndexMap<String, TargetModule>, usize), TargetError> {
    let (mut targets, mut excluded) = (IndexMap::new(), 0);
    if adapts_nothing(config) {
        return Ok((targets, excluded));
    }
    for module in model.modules.iter().filter(|module| !module.path.is_empty()) {
        match matcher.check(&module.path) {
            Verdict::Excluded => excluded += 1,
            Verdict::Unmatched => {}
            Verdict::Matched => {
                check_adaptable(config, model.model_type, module)?;
                let target = TargetModule::plain(config, module.kind);
                targets.insert(module.path.clone(), target);
            }
        }
    }
    Ok((targets, excluded))
}

fn check_adaptable(
    config: &LoraConfig,
    model_type: &str,
    module: &ModuleInfo,
) -> Result<(), TargetError> {
    let path = module.path.clone();
    if MAMBA_TYPES.contains(&model_type) && matches!(last_part(&path), "out_proj" | "conv1d") {
        return Err(TargetError::Mamba { path, model_type: model_type.to_owned() });
    }
    if !module.kind.is_adaptable() {
        return Err(TargetError::Unsupported { path, kind: module.kind });
    }
    if config.lora_bias && module.kind == ModuleKind::Embedding {
        return Err(TargetError::EmbeddingBias { path });
    }
    Ok(())
}

fn nothing_left(config: &LoraConfig, model: &ModelModules<'_>, excluded: usize) -> TargetError {
    let wanted = match &config.target_modules {
        TargetModules::Default => "null".to_owned(),
        TargetModules::AllLinear => "`all-linear`".to_owned(),
        TargetModules::Pattern(pattern) => format!("`{pattern}`"),
        TargetModules::List(names) if names.is_empty() => "an empty list".to_owned(),
        TargetModules::List(names) => crate::config_error::ticked(names),
    };
    let layers = config.layers_to_transform.as_ref().map_or_else(String::new, |layers| {
        let indices: Vec<String> = layers.as_slice().iter().map(i64::to_string).collect();
        format!(" in the layers [{}]", indices.join(", "))
    });
    if excluded > 0 {
        return TargetError::AllExcluded { wanted, layers, excluded };
    }
    TargetError::NothingMatched { wanted, layers, available: available_names(model) }
}

/// Applies `rank_pattern` and `alpha_pattern` and computes the scaling.
fn set_ranks(
    config: &LoraConfig,
    targets: &mut IndexMap<String, TargetModule>,
) -> Result<Vec<TargetWarning>, TargetError> {
    let ranks = Patterns::new("rank_pattern", &config.rank_pattern)?;
    let alphas = Patterns::new("alpha_pattern", &config.alpha_pattern)?;
    let mut names = Vec::with_capacity(targets.len());
    for (path, target) in &mut *targets {
        let name = match target.kind {
            ModuleKind::Parameter => path.clone(),
            _ if target.by_parameter => format!("{path}.weight"),
            _ => path.clone(),
        };
        if let Some(rank) = ranks.find(&name) {
            target.r = *rank;
        }
        if let Some(alpha) = alphas.find(&name) {
            target.lora_alpha = alpha.as_f64();
        }
        names.push(name);
        let rank = target.r as f64;
        target.scaling = target.lora_alpha / if config.use_rslora { rank.sqrt() } else { rank };
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok([ranks.warnings(&names), alphas.warnings(&names)].concat())
}

/// Corrects `fan_in_fan_out` by the kinds of the adapted modules, as PEFT does one by one.
fn set_fan_in_fan_out(
    config: &mut LoraConfig,
    targets: &IndexMap<String, TargetModule>,
) -> Vec<TargetWarning> {
    let mut warnings = Vec::new();
    for (path, target) in targets {
        let value = match target.kind {
            ModuleKind::Linear => false,
            ModuleKind::Conv1D => true,
            _ => continue,
        };
        if config.fan_in_fan_out != value {
            config.fan_in_fan_out = value;
            let (path, kind) = (path.clone(), target.kind);
            warnings.push(TargetWarning::FanInFanOut { path, kind, value });
        }
    }
    warnings
}

/// Whether `path` is `module` or inside it.
fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
