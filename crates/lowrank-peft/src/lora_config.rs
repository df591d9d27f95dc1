//! PEFT's `LoraConfig`: every field of adapter_config.json as PEFT 0.21.2 writes it.
//!
//! Reading a file and writing it back gives the same bytes: fields that lowrank doesn't use and
//! keys that it doesn't know are kept, numbers and lists keep their spelling. What a configuration
//! asks for is checked in two steps: [`LoraConfig::validate`] finds what PEFT refuses too,
//! [`LoraConfig::check_supported`] what PEFT can do and lowrank can't.

use std::path::Path;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config_error::{ConfigError, ConfigProblem, ConfigWarning, shown};
use crate::task_type::{PeftType, TaskType};

mod field;
pub(crate) mod python_json;
mod supported;
mod validate;
mod values;

pub use supported::AdapterUse;
pub use values::{Bias, ExcludeModules, InitLoraWeights, Number, OneOrMany, TargetModules};

/// The PEFT release whose files lowrank reads and writes.
pub const PEFT_VERSION: &str = "0.21.2";

/// The name of the file in an adapter's folder.
pub const CONFIG_NAME: &str = "adapter_config.json";

/// The largest rank that is accepted; a larger one is a mistake, not an adapter.
pub const MAX_RANK: usize = 1 << 20;

/// The configuration of a LoRA adapter, field for field PEFT's `LoraConfig`.
///
/// ```
/// use lowrank_peft::lora_config::{LoraConfig, TargetModules};
///
/// let config = LoraConfig {
///     r: 16,
///     lora_alpha: 32.into(),
///     target_modules: TargetModules::names(["q_proj", "v_proj"]),
///     ..LoraConfig::default()
/// };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraConfig {
    /// What the adapter is for; `None` for a model of its own kind.
    pub task_type: Option<TaskType>,
    /// Class and library of the base model, which PEFT notes when `task_type` is `None`.
    pub auto_mapping: Option<Map<String, Value>>,
    /// The PEFT version that the file follows.
    pub peft_version: Option<String>,
    /// Hub id or folder of the base model.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base model.
    pub revision: Option<String>,
    /// Whether the adapter is frozen. Saved files always say `true`.
    pub inference_mode: bool,
    /// Rank of the update.
    pub r: usize,
    /// Which modules are adapted.
    pub target_modules: TargetModules,
    /// Which modules are not, even if `target_modules` names them.
    pub exclude_modules: Option<ExcludeModules>,
    /// Numerator of the scaling: alpha/r, with `use_rslora` alpha/sqrt(r).
    pub lora_alpha: Number,
    /// Dropout on the input of A while training.
    pub lora_dropout: Number,
    /// Whether base weights are stored as (in, out). Corrected by the kind of each module.
    pub fan_in_fan_out: bool,
    /// Which biases of the base model are trained too.
    pub bias: Bias,
    /// Rank-stabilized scaling, alpha/sqrt(r).
    pub use_rslora: bool,
    /// Modules that are trained and stored whole.
    pub modules_to_save: Option<Vec<String>>,
    /// How A and B start.
    pub init_lora_weights: InitLoraWeights,
    /// Keeps only the layers of these indices.
    pub layers_to_transform: Option<OneOrMany<i64>>,
    /// Names of the list of layers, for `layers_to_transform`.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Ranks that differ from `r`: name or regular expression to rank, the first match counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas that differ from `lora_alpha`, matched in the same way.
    pub alpha_pattern: IndexMap<String, Number>,
    /// Configuration of Megatron's parallel layers.
    pub megatron_config: Option<Map<String, Value>>,
    /// Module of Megatron.
    pub megatron_core: Option<String>,
    /// Token rows of the embedding that are trained alone.
    pub trainable_token_indices: Option<Value>,
    /// Settings of the `loftq` initialization.
    pub loftq_config: Option<Map<String, Value>>,
    /// Settings of the `eva` initialization.
    pub eva_config: Option<Map<String, Value>>,
    /// Settings of the `corda` initialization.
    pub corda_config: Option<Map<String, Value>>,
    /// Settings of the `lora_ga` initialization.
    pub lora_ga_config: Option<Map<String, Value>>,
    /// Weight-decomposed LoRA (DoRA).
    pub use_dora: bool,
    /// Compressed activations in the backward pass (VeLoRA).
    pub velora_config: Option<Map<String, Value>>,
    /// Tokens that switch the adapter on (aLoRA).
    pub alora_invocation_tokens: Option<Vec<i64>>,
    /// Group-pooled input of A (QA-LoRA).
    pub use_qalora: bool,
    /// Group size of QA-LoRA.
    pub qalora_group_size: usize,
    /// Settings of MonteCLoRA.
    pub monteclora_config: Option<Map<String, Value>>,
    /// Ranges of layers that the model is rebuilt from.
    pub layer_replication: Option<Value>,
    /// Whether B has a bias.
    pub lora_bias: bool,
    /// Parameters that are adapted without a module of their own (experts).
    pub target_parameters: Option<Vec<String>>,
    /// Settings of block-diagonal LoRA.
    pub use_bdlora: Option<Map<String, Value>>,
    /// Settings of Arrow routing.
    pub arrow_config: Option<Map<String, Value>>,
    /// Settings of KaSA.
    pub kasa_config: Option<Map<String, Value>>,
    /// Whether adapters of tied layers stay tied.
    pub ensure_weight_tying: bool,
    /// Keys of the file that PEFT 0.21.2 doesn't know; written back as they were.
    #[serde(skip)]
    pub extra: Map<String, Value>,
}

impl Default for LoraConfig {
    /// PEFT's defaults.
    fn default() -> Self {
        Self {
            task_type: None,
            auto_mapping: None,
            peft_version: Some(PEFT_VERSION.to_owned()),
            base_model_name_or_path: None,
            revision: None,
            inference_mode: false,
            r: 8,
            target_modules: TargetModules::Default,
            exclude_modules: None,
            lora_alpha: Number::Int(8),
            lora_dropout: Number::Float(0.0),
            fan_in_fan_out: false,
            bias: Bias::None,
            use_rslora: false,
            modules_to_save: None,
            init_lora_weights: InitLoraWeights::Default,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            megatron_config: None,
            megatron_core: Some("megatron.core".to_owned()),
            trainable_token_indices: None,
            loftq_config: Some(Map::new()),
            eva_config: None,
            corda_config: None,
            lora_ga_config: None,
            use_dora: false,
            velora_config: None,
            alora_invocation_tokens: None,
            use_qalora: false,
            qalora_group_size: 16,
            monteclora_config: None,
            layer_replication: None,
            lora_bias: false,
            target_parameters: None,
            use_bdlora: None,
            arrow_config: None,
            kasa_config: None,
            ensure_weight_tying: false,
            extra: Map::new(),
        }
    }
}

/// A configuration of any method that lowrank implements.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PeftConfig {
    /// Low-rank adaptation.
    Lora(LoraConfig),
}

/// The configuration that `fields` describes, its method chosen by `peft_type`. As in PEFT's
/// function of that name an unknown key is an error.
pub fn get_peft_config(fields: &Value) -> Result<PeftConfig, ConfigError> {
    let (config, warnings) = LoraConfig::from_value(fields)?;
    for warning in warnings {
        match warning {
            ConfigWarning::UnknownKeys { keys } => {
                return Err(ConfigProblem::UnknownKeys { keys }.into());
            }
            ConfigWarning::RuntimeConfig => {
                let keys = vec!["runtime_config".to_owned()];
                return Err(ConfigProblem::UnknownKeys { keys }.into());
            }
            ConfigWarning::UnusedInitConfig { .. } | ConfigWarning::AloraTask => {}
        }
    }
    Ok(PeftConfig::Lora(config))
}

impl LoraConfig {
    /// Reads `folder/adapter_config.json`. Errors name the file.
    pub fn from_pretrained(folder: &Path) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let file = folder.join(CONFIG_NAME);
        let text = std::fs::read_to_string(&file)
            .map_err(|error| ConfigError::from(ConfigProblem::Io(error)).in_file(&file))?;
        Self::from_json(&text).map_err(|error| error.in_file(&file))
    }

    /// Reads the text of an adapter_config.json.
    pub fn from_json(text: &str) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let value: Value = serde_json::from_str(text).map_err(ConfigProblem::Json)?;
        Self::from_value(&value)
    }

    /// Reads a configuration that is JSON already. Missing keys take PEFT's defaults, unknown ones
    /// go to [`Self::extra`] and are reported; the values are validated.
    pub fn from_value(value: &Value) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let Value::Object(map) = value else {
            return Err(ConfigProblem::NotAnObject { found: shown(value) }.into());
        };
        let mut map = map.clone();
        check_method(map.shift_remove("peft_type"))?;
        let mut warnings = Vec::new();
        if map.shift_remove("runtime_config").is_some() {
            warnings.push(ConfigWarning::RuntimeConfig);
        }
        let mut config = Self::take_fields(&mut map)?;
        if !map.is_empty() {
            warnings.push(ConfigWarning::UnknownKeys { keys: map.keys().cloned().collect() });
        }
        config.extra = map;
        warnings.extend(config.validate()?);
        Ok((config, warnings))
    }

    /// The text of adapter_config.json, the same bytes that PEFT writes.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        self.validate()?;
        let known = serde_json::to_value(self).map_err(ConfigProblem::Json)?;
        let mut all = self.extra.clone();
        if let Value::Object(known) = known {
            all.extend(known);
        }
        all.insert("peft_type".to_owned(), PeftType::LORA.name().into());
        Ok(python_json::to_python_json(&Value::Object(all)))
    }

    /// Takes every known field out of `map`.
    fn take_fields(map: &mut Map<String, Value>) -> Result<Self, ConfigProblem> {
        let mut config = Self::default();
        macro_rules! take {
            ($($name:ident)*) => { $(field::take(map, stringify!($name), &mut config.$name)?;)* };
        }
        take!(task_type auto_mapping peft_version base_model_name_or_path revision inference_mode);
        take!(r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias);
        take!(use_rslora modules_to_save init_lora_weights layers_to_transform layers_pattern);
        take!(rank_pattern alpha_pattern megatron_config megatron_core trainable_token_indices);
        take!(loftq_config eva_config corda_config lora_ga_config use_dora velora_config);
        take!(alora_invocation_tokens use_qalora qalora_group_size monteclora_config);
        take!(layer_replication lora_bias target_parameters use_bdlora arrow_config kasa_config);
        take!(ensure_weight_tying);
        // PEFT fills in its own version where a file has none.
        config.peft_version.get_or_insert_with(|| PEFT_VERSION.to_owned());
        Ok(config)
    }
}

/// Only LORA passes; the error says which method was asked for.
fn check_method(peft_type: Option<Value>) -> Result<(), ConfigProblem> {
    let found = peft_type.ok_or(ConfigProblem::NoPeftType)?;
    match found.as_str().and_then(PeftType::from_name) {
        Some(PeftType::LORA) => Ok(()),
        Some(other) => Err(ConfigProblem::OtherMethod { method: other.name() }),
        None => Err(ConfigProblem::UnknownPeftType { found: shown(&found) }),
    }
}
