//! What PEFT refuses when a `LoraConfig` is constructed or injected, and bounds of its numbers.

use serde_json::{Map, Value};

use super::{InitLoraWeights, LoraConfig, MAX_RANK, OneOrMany, TargetModules};
use crate::config_error::{ConfigError, ConfigProblem, ConfigWarning, shown};
use crate::task_type::TaskType;

impl LoraConfig {
    /// Checks the fields and their combinations as PEFT does, and that all numbers are in bounds.
    /// Returns what is odd but allowed.
    pub fn validate(&self) -> Result<Vec<ConfigWarning>, ConfigError> {
        self.check_numbers()?;
        self.check_targets()?;
        self.check_combinations()?;
        self.check_sub_configs()?;
        Ok(self.warnings())
    }

    fn check_numbers(&self) -> Result<(), ConfigProblem> {
        check_rank("r", self.r)?;
        for (key, rank) in &self.rank_pattern {
            check_rank(&format!("rank_pattern.{key}"), *rank)?;
        }
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (Some(key), alpha));
        for (key, alpha) in std::iter::once((None, &self.lora_alpha)).chain(alphas) {
            if !alpha.as_f64().is_finite() {
                let field = key
                    .map_or_else(|| "lora_alpha".to_owned(), |key| format!("alpha_pattern.{key}"));
                return Err(bad(field, &alpha.to_string(), "a finite number"));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout.as_f64()) {
            let found = self.lora_dropout.to_string();
            return Err(bad("lora_dropout".to_owned(), &found, "at least 0 and below 1"));
        }
        if self.qalora_group_size == 0 {
            return Err(bad("qalora_group_size".to_owned(), "0", "at least 1"));
        }
        Ok(())
    }

    fn check_targets(&self) -> Result<(), ConfigProblem> {
        let regex = matches!(self.target_modules, TargetModules::Pattern(_))
            || self.target_modules.is_all_linear();
        for (field, set) in [
            ("layers_to_transform", self.layers_to_transform.is_some()),
            ("layers_pattern", self.layers_pattern.is_some()),
        ] {
            if regex && set {
                let why = "layers are only chosen among a list of names; \
                           put the layer into the regular expression";
                return Err(ConfigProblem::Conflict { field, other: "target_modules", why });
            }
        }
        let has_pattern = match &self.layers_pattern {
            None => false,
            Some(OneOrMany::One(pattern)) => !pattern.is_empty(),
            Some(OneOrMany::Many(patterns)) => !patterns.is_empty(),
        };
        if has_pattern && self.layers_to_transform.is_none() {
            let (field, needs) = ("layers_pattern", "layers_to_transform");
            return Err(ConfigProblem::Incomplete { field, needs });
        }
        if self.modules_to_save.iter().flatten().any(String::is_empty) {
            // PEFT's `endswith` would wrap every module of the model.
            return Err(bad("modules_to_save".to_owned(), "\"\"", "a list of module names"));
        }
        Ok(())
    }

    fn check_combinations(&self) -> Result<(), ConfigProblem> {
        let conflict = |field, other, why| Err(ConfigProblem::Conflict { field, other, why });
        if self.use_dora && is_set(self.megatron_config.as_ref()) {
            return conflict("use_dora", "megatron_config", "DoRA has no Megatron layers");
        }
        if self.init_name() == Some("loftq") && !is_set(self.loftq_config.as_ref()) {
            let (field, needs) = ("init_lora_weights", "loftq_config");
            return Err(ConfigProblem::Incomplete { field, needs });
        }
        let plain_init =
            matches!(self.init_lora_weights, InitLoraWeights::Default | InitLoraWeights::Random);
        if self.lora_bias && !plain_init {
            let why = "a bias of B needs an initialization of true or false";
            return conflict("lora_bias", "init_lora_weights", why);
        }
        if self.lora_bias && self.use_dora {
            return conflict("lora_bias", "use_dora", "DoRA has no bias of B");
        }
        Ok(())
    }

    fn check_sub_configs(&self) -> Result<(), ConfigProblem> {
        for (field, config) in [
            ("eva_config", &self.eva_config),
            ("velora_config", &self.velora_config),
            ("arrow_config", &self.arrow_config),
            ("monteclora_config", &self.monteclora_config),
            ("kasa_config", &self.kasa_config),
        ] {
            let Some(config) = config else { continue };
            for rule in RULES.iter().filter(|rule| rule.config == field) {
                rule.check(config)?;
            }
        }
        let modes = ["batch_average", "batch_average_once", "random"];
        if let Some(mode) = self.velora_config.as_ref().and_then(|config| config.get("init_type"))
            && !mode.as_str().is_some_and(|mode| modes.contains(&mode))
        {
            let field = "velora_config.init_type".to_owned();
            return Err(ConfigProblem::BadValue {
                field,
                found: shown(mode),
                must_be: format!("one of {}", modes.join(", ")),
            });
        }
        self.use_bdlora.as_ref().map_or(Ok(()), check_block_diagonal)
    }

    fn warnings(&self) -> Vec<ConfigWarning> {
        let mut warnings = Vec::new();
        for (name, field, config) in [
            ("loftq", "loftq_config", self.loftq_config.as_ref().filter(|map| !map.is_empty())),
            ("eva", "eva_config", self.eva_config.as_ref()),
            ("corda", "corda_config", self.corda_config.as_ref()),
        ] {
            if config.is_some() && self.init_name() != Some(name) {
                let init = self.init_lora_weights.to_string();
                warnings.push(ConfigWarning::UnusedInitConfig { field, init });
            }
        }
        if self.alora_invocation_tokens.is_some() && self.task_type != Some(TaskType::CausalLm) {
            warnings.push(ConfigWarning::AloraTask);
        }
        warnings
    }

    /// The initialization's name, if it is none of true, false and gaussian.
    pub(super) fn init_name(&self) -> Option<&str> {
        match &self.init_lora_weights {
            InitLoraWeights::Named(name) => Some(name),
            InitLoraWeights::Default | InitLoraWeights::Random | InitLoraWeights::Gaussian => None,
        }
    }
}

/// Python's truth of an object or None.
pub(super) fn is_set(config: Option<&Map<String, Value>>) -> bool {
    config.is_some_and(|map| !map.is_empty())
}

fn bad(field: String, found: &str, must_be: &str) -> ConfigProblem {
    ConfigProblem::BadValue { field, found: format!("`{found}`"), must_be: must_be.to_owned() }
}

fn check_rank(field: &str, rank: usize) -> Result<(), ConfigProblem> {
    if (1..=MAX_RANK).contains(&rank) {
        return Ok(());
    }
    let must_be = format!("a whole number from 1 to {MAX_RANK}");
    Err(bad(field.to_owned(), &rank.to_string(), &must_be))
}

/// The range of one number in a sub-configuration.
struct Rule {
    config: &'static str,
    key: &'static str,
    allows: fn(f64) -> bool,
    must_be: &'static str,
}

impl Rule {
    const fn above_zero(config: &'static str, key: &'static str) -> Self {
        Self { config, key, allows: |x| x > 0.0, must_be: "a number above 0" }
    }

    const fn not_negative(config: &'static str, key: &'static str) -> Self {
        Self { config, key, allows: |x| x >= 0.0, must_be: "a number of at least 0" }
    }

    fn check(&self, config: &Map<String, Value>) -> Result<(), ConfigProblem> {
        let Some(value) = config.get(self.key) else { return Ok(()) };
        if value.as_f64().is_some_and(self.allows) {
            return Ok(());
        }
        Err(ConfigProblem::BadValue {
            field: format!("{}.{}", self.config, self.key),
            found: shown(value),
            must_be: self.must_be.to_owned(),
        })
    }
}

const RULES: [Rule; 11] = [
    Rule {
        config: "eva_config",
        key: "rho",
        allows: |x| x >= 1.0,
        must_be: "a number of at least 1",
    },
    Rule {
        config: "eva_config",
        key: "tau",
        allows: |x| (0.0..=1.0).contains(&x),
        must_be: "a number from 0 to 1",
    },
    Rule::above_zero("velora_config", "num_groups"),
    Rule::above_zero("velora_config", "scale"),
    Rule::above_zero("arrow_config", "top_k"),
    Rule::above_zero("arrow_config", "router_temperature"),
    Rule::above_zero("monteclora_config", "num_samples"),
    Rule::above_zero("monteclora_config", "dirichlet_prior"),
    Rule::above_zero("monteclora_config", "buffer_size"),
    Rule::not_negative("kasa_config", "beta"),
    Rule::not_negative("kasa_config", "gamma"),
];

/// No module can have both its A and its B block-diagonal.
fn check_block_diagonal(config: &Map<String, Value>) -> Result<(), ConfigProblem> {
    let list = |key| config.get(key).and_then(Value::as_array);
    let (Some(a), Some(b)) = (list("target_modules_bd_a"), list("target_modules_bd_b")) else {
        return Ok(());
    };
    match a.iter().find(|name| b.contains(name)) {
        None => Ok(()),
        Some(both) => Err(ConfigProblem::BadValue {
            field: "use_bdlora.target_modules_bd_b".to_owned(),
            found: shown(both),
            must_be: "a list without the modules of target_modules_bd_a".to_owned(),
        }),
    }
}
