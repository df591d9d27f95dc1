//! Which modules PEFT 0.21.2 adapts when `target_modules` is null, by the model's `model_type`.
//!
//! The table is PEFT's `TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`, sorted; a test compares
//! it with a dump of that mapping.

use crate::lora_config::TargetModules;

/// PEFT's default targets for one kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultTargets {
    /// Names as in [`TargetModules::List`].
    Names(&'static [&'static str]),
    /// A regular expression as in [`TargetModules::Pattern`].
    Pattern(&'static str),
}

impl From<DefaultTargets> for TargetModules {
    fn from(targets: DefaultTargets) -> Self {
        match targets {
            DefaultTargets::Names(names) => Self::names(names.iter().copied()),
            DefaultTargets::Pattern(pattern) => Self::Pattern(pattern.to_owned()),
        }
    }
}

/// The default targets of `model_type`, `None` if PEFT has none for it.
///
/// ```
/// use lowrank_peft::default_targets::{DefaultTargets, default_target_modules};
///
/// let targets = default_target_modules("llama");
/// assert_eq!(targets, Some(DefaultTargets::Names(&["q_proj", "v_proj"])));
/// ```
pub fn default_target_modules(model_type: &str) -> Option<DefaultTargets> {
    let row = DEFAULTS.binary_search_by_key(&model_type, |(name, _)| name).ok()?;
    DEFAULTS.get(row).map(|(_, targets)| *targets)
}

/// The kinds of models that have default targets, sorted.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    DEFAULTS.iter().map(|(name, _)| *name)
}

use DefaultTargets::{Names, Pattern};

#[rustfmt::skip]
const DEFAULTS: &[(&str, DefaultTargets)] = &[
    ("RefinedWeb", Names(&["query_key_value"])),
    ("RefinedWebModel", Names(&["query_key_value"])),
    ("bart", Names(&["q_proj", "v_proj"])),
    ("bert", Names(&["query", "value"])),
    ("blip-2", Names(&["q", "v", "q_proj", "v_proj"])),
    ("bloom", Names(&["query_key_value"])),
    ("btlm", Names(&["c_proj", "c_attn"])),
    ("chatglm", Names(&["query_key_value"])),
    ("codegen", Names(&["qkv_proj"])),
    ("deberta", Names(&["in_proj"])),
    ("deberta-v2", Names(&["query_proj", "value_proj"])),
    ("electra", Names(&["query", "value"])),
    ("falcon", Names(&["query_key_value"])),
    ("gemma", Names(&["q_proj", "v_proj"])),
    ("gemma2", Names(&["q_proj", "v_proj"])),
    ("gemma3_text", Names(&["q_proj", "v_proj"])),
    ("gemma4", Pattern(r".*language_model\..*\.(q_proj|v_proj)")),
    ("gpt2", Names(&["c_attn"])),
    ("gpt_bigcode", Names(&["c_attn"])),
    ("gpt_neo", Names(&["q_proj", "v_proj"])),
    ("gpt_neox", Names(&["query_key_value"])),
    ("gptj", Names(&["q_proj", "v_proj"])),
    ("layoutlm", Names(&["query", "value"])),
    ("llama", Names(&["q_proj", "v_proj"])),
    ("llama4", Names(&["q_proj", "v_proj"])),
    ("mistral", Names(&["q_proj", "v_proj"])),
    ("mixtral", Names(&["q_proj", "v_proj"])),
    ("mpt", Names(&["Wqkv"])),
    ("mt5", Names(&["q", "v"])),
    ("nemotron_h", Names(&["q_proj", "k_proj", "v_proj", "o_proj"])),
    ("opt", Names(&["q_proj", "v_proj"])),
    ("phi", Names(&["q_proj", "v_proj", "fc1", "fc2"])),
    ("qwen2", Names(&["q_proj", "v_proj"])),
    ("qwen3", Names(&["q_proj", "v_proj"])),
    ("roberta", Names(&["query", "value"])),
    ("rwkv", Names(&["key", "value", "receptance", "output"])),
    ("rwkv7", Names(&["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"])),
    ("stablelm", Names(&["q_proj", "v_proj"])),
    ("t5", Names(&["q", "v"])),
    ("xlm-roberta", Names(&["query", "value"])),
];
