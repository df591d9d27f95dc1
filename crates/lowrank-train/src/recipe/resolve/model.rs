//! The model's part of a plan, and how answers are drawn from it.

use crate::recipe::plan::{
    Device, GeneratePlan, GenerationLimit, ModelPlan, RopeScaling, WeightDtype,
};
use crate::recipe::{Recipe, RecipeError};
use lowrank_autograd::PLACEMENTS;
use std::path::PathBuf;

/// What the model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Training,
    Inference,
}

impl Recipe {
    pub(super) fn model(&self, purpose: Use) -> Result<ModelPlan, RecipeError> {
        Ok(ModelPlan {
            model_name_or_path: self.get("model_name_or_path")?,
            adapters: self.adapters()?,
            weights: match purpose {
                Use::Training => self.training_weights()?,
                Use::Inference => self.dtype("infer_dtype")?,
            },
            rope_scaling: self.rope_scaling()?,
            moe_aux_loss_coef: self.opt("moe_aux_loss_coef")?.filter(|factor| *factor != 0.0),
            device: self.device()?,
        })
    }

    fn adapters(&self) -> Result<Vec<PathBuf>, RecipeError> {
        let folders: Vec<String> = self.opt("adapter_name_or_path")?.unwrap_or_default();
        let inner: Option<String> = self.opt("adapter_folder")?;
        let path = |folder: String| match &inner {
            Some(inner) => PathBuf::from(folder).join(inner),
            None => PathBuf::from(folder),
        };
        Ok(folders.into_iter().map(path).collect())
    }

    fn dtype(&self, key: &'static str) -> Result<WeightDtype, RecipeError> {
        match self.get::<String>(key)?.as_str() {
            "float32" => Ok(WeightDtype::F32),
            "bfloat16" => Ok(WeightDtype::Bf16),
            _ => Ok(WeightDtype::Checkpoint),
        }
    }

    /// `dtype`, or else bf16 if `bf16` or `pure_bf16` asks for it.
    fn training_weights(&self) -> Result<WeightDtype, RecipeError> {
        let said = self.dtype("dtype")?;
        for key in ["bf16", "pure_bf16"] {
            match (self.get(key)?, said) {
                (false, _) => {}
                (true, WeightDtype::F32) => {
                    let rule = "the base weights can't be kept in both";
                    return Err(self.contradiction(key, "dtype", rule));
                }
                (true, _) => return Ok(WeightDtype::Bf16),
            }
        }
        Ok(said)
    }

    fn rope_scaling(&self) -> Result<Option<RopeScaling>, RecipeError> {
        let word: Option<String> = self.opt("rope_scaling")?;
        Ok(word.and_then(|word| match word.as_str() {
            "linear" => Some(RopeScaling::Linear),
            "dynamic" => Some(RopeScaling::Dynamic),
            "yarn" => Some(RopeScaling::Yarn),
            "llama3" => Some(RopeScaling::Llama3),
            _ => None,
        }))
    }

    fn device(&self) -> Result<Device, RecipeError> {
        let word: String = self.get("device")?;
        word.parse().map_err(|_| self.bad("device", PLACEMENTS))
    }

    pub(super) fn generation(&self) -> Result<GeneratePlan, RecipeError> {
        let temperature: f64 = self.get("temperature")?;
        let new_tokens: usize = self.get("max_new_tokens")?;
        Ok(GeneratePlan {
            do_sample: self.get("do_sample")? && temperature > 0.0,
            temperature,
            top_p: self.get("top_p")?,
            top_k: self.get("top_k")?,
            repetition_penalty: self.get("repetition_penalty")?,
            limit: self.generation_limit(new_tokens)?,
            skip_special_tokens: self.get("skip_special_tokens")?,
        })
    }

    /// `max_new_tokens` wins if it is above 0, and by default it is.
    fn generation_limit(&self, new_tokens: usize) -> Result<GenerationLimit, RecipeError> {
        match new_tokens {
            0 => Ok(GenerationLimit::TotalTokens(self.get("max_length")?)),
            tokens => Ok(GenerationLimit::NewTokens(tokens)),
        }
    }
}
