//! The method's part of a plan: LoRA in PEFT's terms, with the rules of `LoraConfig`.

use crate::recipe::plan::{
    Bias, Freeze, InitLoraWeights, LoraPlan, MethodPlan, Packing, Target, TaskType,
};
use crate::recipe::yaml::Value;
use crate::recipe::{Recipe, RecipeError};
use indexmap::IndexMap;

/// A name with one of these is a regex; names of modules have none of them.
const REGEX_CHARACTERS: [char; 10] = ['^', '$', '*', '+', '?', '(', ')', '[', ']', '|'];

/// PEFT's other ways to begin.
const LATER_INITS: [&str; 8] =
    ["pissa", "olora", "eva", "loftq", "corda", "lora_ga", "orthogonal", "mica"];

impl Recipe {
    pub(super) fn method(&self) -> Result<MethodPlan, RecipeError> {
        let plan = LoraPlan {
            task_type: self.task_type()?,
            lora_rank: self.get("lora_rank")?,
            lora_alpha: self.lora_alpha()?,
            lora_dropout: self.get("lora_dropout")?,
            target: self.target("lora_target")?.unwrap_or(Target::All),
            target_parameters: self.opt("target_parameters")?.unwrap_or_default(),
            freeze: Freeze {
                vision_tower: self.get("freeze_vision_tower")?,
                multi_modal_projector: self.get("freeze_multi_modal_projector")?,
                language_model: self.get("freeze_language_model")?,
            },
            exclude_modules: self.excluded()?,
            use_rslora: self.get("use_rslora")?,
            modules_to_save: self.opt("additional_target")?.unwrap_or_default(),
            rank_pattern: self.rank_pattern()?,
            alpha_pattern: self.alpha_pattern()?,
            layers_to_transform: self.layers_to_transform()?,
            layers_pattern: self.opt("layers_pattern")?.unwrap_or_default(),
            bias: self.bias()?,
            lora_bias: self.get("lora_bias")?,
            fan_in_fan_out: self.get("fan_in_fan_out")?,
            init_lora_weights: self.init_lora_weights()?,
            create_new_adapter: self.get("create_new_adapter")?,
        };
        self.check_layers(&plan)?;
        self.check_task(&plan)?;
        Ok(MethodPlan::Lora(plan))
    }

    fn lora_alpha(&self) -> Result<f64, RecipeError> {
        match self.opt("lora_alpha")? {
            Some(alpha) => Ok(alpha),
            None => Ok(2.0 * self.get::<f64>("lora_rank")?),
        }
    }

    fn task_type(&self) -> Result<TaskType, RecipeError> {
        match self.get::<String>("task_type")?.as_str() {
            "CAUSAL_LM" => Ok(TaskType::CausalLm),
            "SEQ_CLS" => Ok(TaskType::SeqCls),
            "TOKEN_CLS" => Ok(TaskType::TokenCls),
            "QUESTION_ANS" => Ok(TaskType::QuestionAns),
            "SEQ_2_SEQ_LM" => Ok(TaskType::Seq2SeqLm),
            _ => Err(self.bad("task_type", "one of PEFT's task types")),
        }
    }

    fn bias(&self) -> Result<Bias, RecipeError> {
        match self.get::<String>("bias")?.as_str() {
            "all" => Ok(Bias::All),
            "lora_only" => Ok(Bias::LoraOnly),
            _ => Ok(Bias::None),
        }
    }

    /// A choice of modules; a value that isn't a list and has a character of a regex is one.
    fn target(&self, key: &'static str) -> Result<Option<Target>, RecipeError> {
        let Some(node) = self.node(key) else { return Ok(None) };
        if let Value::Scalar { text, .. } = &node.value {
            if text.contains(REGEX_CHARACTERS) || text.contains('\\') {
                return Ok(Some(Target::Pattern(text.clone())));
            }
            if text.eq_ignore_ascii_case("all-linear") {
                return Ok(Some(Target::AllLinear));
            }
        }
        let names: Vec<String> = self.get(key)?;
        match names.as_slice() {
            [] if key == "lora_target" && self.node("target_parameters").is_some() => {
                Ok(Some(Target::Names(names)))
            }
            [] => Err(self.bad(key, "one name or more")),
            [one] if one == "all" => Ok(Some(Target::All)),
            _ => Ok(Some(Target::Names(names))),
        }
    }

    fn excluded(&self) -> Result<Option<Target>, RecipeError> {
        match self.target("exclude_modules")? {
            Some(Target::All | Target::AllLinear) => {
                Err(self.bad("exclude_modules", "names or a regex, not all modules"))
            }
            other => Ok(other),
        }
    }

    fn rank_pattern(&self) -> Result<IndexMap<String, usize>, RecipeError> {
        let must_be = "a map of names or regexes to ranks (whole numbers, 1 or more)";
        let pattern = self.opt::<IndexMap<String, usize>>("rank_pattern");
        match pattern.map_err(|_| self.bad("rank_pattern", must_be))? {
            Some(ranks) if ranks.values().any(|rank| *rank == 0) => {
                Err(self.bad("rank_pattern", must_be))
            }
            ranks => Ok(ranks.unwrap_or_default()),
        }
    }

    fn alpha_pattern(&self) -> Result<IndexMap<String, f64>, RecipeError> {
        let must_be = "a map of names or regexes to numbers above 0";
        let pattern = self.opt::<IndexMap<String, f64>>("alpha_pattern");
        match pattern.map_err(|_| self.bad("alpha_pattern", must_be))? {
            Some(alphas) if alphas.values().any(|alpha| *alpha <= 0.0) => {
                Err(self.bad("alpha_pattern", must_be))
            }
            alphas => Ok(alphas.unwrap_or_default()),
        }
    }

    fn layers_to_transform(&self) -> Result<Vec<usize>, RecipeError> {
        Ok(self.opt("layers_to_transform")?.unwrap_or_default())
    }

    fn init_lora_weights(&self) -> Result<InitLoraWeights, RecipeError> {
        let word: String = self.opt("init_lora_weights")?.unwrap_or_default();
        match (self.opt::<bool>("init_lora_weights"), word.as_str()) {
            (Ok(Some(true)), _) => Ok(InitLoraWeights::Kaiming),
            (Ok(Some(false)), _) => Ok(InitLoraWeights::Random),
            (_, "gaussian") => Ok(InitLoraWeights::Gaussian),
            (_, word) if LATER_INITS.iter().any(|later| word.starts_with(later)) => {
                Err(self.not_yet("init_lora_weights", "write true, false or `gaussian`"))
            }
            _ => Err(self.bad("init_lora_weights", "true, false or `gaussian`")),
        }
    }

    /// PEFT's rules: layers are chosen among names, and a pattern needs layers.
    fn check_layers(&self, plan: &LoraPlan) -> Result<(), RecipeError> {
        let names = matches!(plan.target, Target::Names(_));
        for key in ["layers_to_transform", "layers_pattern"] {
            if self.is_set(key) && !names {
                let rule = "layers are chosen among modules that are given as a list of names";
                return Err(self.contradiction(key, "lora_target", rule));
            }
        }
        if self.is_set("layers_pattern") && plan.layers_to_transform.is_empty() {
            let rule = "`layers_pattern` says where `layers_to_transform` counts, so it needs that";
            return Err(self.contradiction("layers_pattern", "layers_to_transform", rule));
        }
        if plan.lora_bias && plan.init_lora_weights == InitLoraWeights::Gaussian {
            let rule = "with a bias on B, PEFT only begins with true or false";
            return Err(self.contradiction("lora_bias", "init_lora_weights", rule));
        }
        Ok(())
    }

    /// Packed rows have no place for a label per sample, so only causal models pack.
    fn check_task(&self, plan: &LoraPlan) -> Result<(), RecipeError> {
        if plan.task_type == TaskType::CausalLm || self.packing()? == Packing::Off {
            return Ok(());
        }
        let key = if self.get("neat_packing")? { "neat_packing" } else { "packing" };
        Err(self.contradiction("task_type", key, "only CAUSAL_LM packs its samples"))
    }
}
