//! Which fields ask for mathematics that PEFT has and lowrank hasn't.

use serde_json::Value;

use super::validate::is_set;
use super::{InitLoraWeights, LoraConfig};
use crate::config_error::{ConfigError, ConfigProblem, shown};

/// What a configuration is used for, which decides about its initialization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterUse {
    /// A new adapter whose weights are about to be initialized.
    Fresh,
    /// An adapter whose weights come from a file. PEFT initializes it before it loads, so an
    /// initialization that changes the base weights changes them once more.
    Load,
}

impl LoraConfig {
    /// An error naming the first field that changes the result and isn't implemented.
    pub fn check_supported(&self, purpose: AdapterUse) -> Result<(), ConfigError> {
        let unsupported = self
            .unsupported_variant()
            .or_else(|| self.unsupported_target())
            .or_else(|| self.unsupported_init(purpose));
        match unsupported {
            None => Ok(()),
            Some((field, found, why)) => {
                Err(ConfigProblem::Unsupported { field, found: shown(&found), why }.into())
            }
        }
    }

    /// Another formula than `W + s·BA`.
    fn unsupported_variant(&self) -> Option<Unsupported> {
        let flag = |field, set: bool, why| set.then(|| (field, Value::Bool(true), why));
        let object =
            |field, map: &Option<_>, why| map.clone().map(|map| (field, Value::Object(map), why));
        flag("use_dora", self.use_dora, "DoRA decomposes the weight into magnitude and direction")
            .or_else(|| {
                let tokens = self.alora_invocation_tokens.clone()?;
                let why = "aLoRA is only active from its invocation tokens on";
                Some(("alora_invocation_tokens", tokens.into(), why))
            })
            .or_else(|| object("arrow_config", &self.arrow_config, "Arrow routes between adapters"))
            .or_else(|| object("use_bdlora", &self.use_bdlora, "BD-LoRA is block-diagonal"))
            .or_else(|| object("kasa_config", &self.kasa_config, "KaSA truncates the base weight"))
            .or_else(|| flag("use_qalora", self.use_qalora, "QA-LoRA pools the input in groups"))
            .or_else(|| {
                object("velora_config", &self.velora_config, "VeLoRA compresses the backward pass")
            })
            .or_else(|| {
                object("monteclora_config", &self.monteclora_config, "MonteCLoRA samples weights")
            })
    }

    /// Something to adapt that isn't a module as it stands.
    fn unsupported_target(&self) -> Option<Unsupported> {
        let layers = self.layer_replication.clone().filter(|list| !is_empty_list(list));
        let megatron = self.megatron_config.clone().filter(|map| is_set(Some(map)));
        layers
            .map(|list| ("layer_replication", list, "the layer stack would be rebuilt"))
            .or_else(|| {
                let why = "token rows can't be trained alone; use `modules_to_save` for all rows";
                self.trainable_token_indices
                    .clone()
                    .map(|indices| ("trainable_token_indices", indices, why))
            })
            .or_else(|| {
                let why = "Megatron's parallel layers don't exist here";
                megatron.map(|map| ("megatron_config", Value::Object(map), why))
            })
            .or_else(|| {
                let why = "adapters of tied layers aren't kept tied";
                self.ensure_weight_tying.then(|| ("ensure_weight_tying", Value::Bool(true), why))
            })
    }

    fn unsupported_init(&self, purpose: AdapterUse) -> Option<Unsupported> {
        let InitLoraWeights::Named(name) = &self.init_lora_weights else { return None };
        let why = match (purpose, InitEffect::of(name)) {
            (AdapterUse::Load, InitEffect::AdapterOnly) => return None,
            (AdapterUse::Fresh, InitEffect::AdapterOnly) => {
                "use true, false or \"gaussian\" for a new adapter"
            }
            (AdapterUse::Fresh, InitEffect::BaseToo) => {
                "it changes the base weights; use true, false or \"gaussian\""
            }
            (AdapterUse::Load, InitEffect::BaseToo) => {
                "its base weights were changed by the initialization; let PEFT convert it with \
                 `save_pretrained(path_initial_model_for_weight_conversion=...)`"
            }
            (_, InitEffect::Unknown) => "PEFT 0.21.2 has no such initialization",
        };
        Some(("init_lora_weights", Value::String(name.clone()), why))
    }
}

/// Field, value and reason.
type Unsupported = (&'static str, Value, &'static str);

/// What an initialization of that name touches.
enum InitEffect {
    AdapterOnly,
    BaseToo,
    Unknown,
}

impl InitEffect {
    fn of(name: &str) -> Self {
        // PEFT compares some of the names in lower case and others as they are.
        match name.to_lowercase().as_str() {
            "gaussian" | "eva" | "orthogonal" | "mica" => Self::AdapterOnly,
            "olora" | "corda" | "lora_ga" | "loftq" => Self::BaseToo,
            name if name.starts_with("pissa") => Self::BaseToo,
            _ => Self::Unknown,
        }
    }
}

fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
