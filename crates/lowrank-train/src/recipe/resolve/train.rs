//! The steps' part of a plan: duration, schedule, optimizer, and where the run begins.

use super::is_word;
use crate::recipe::plan::{AdamW, Duration, LrScheduler, Ramp, Resume, TrainPlan, Warmup};
use crate::recipe::{Recipe, RecipeError};
use indexmap::IndexMap;
use serde_json::Value as Json;

impl Recipe {
    pub(super) fn train(&self) -> Result<TrainPlan, RecipeError> {
        let seed: u64 = self.get("seed")?;
        let max_grad_norm: f64 = self.get("max_grad_norm")?;
        Ok(TrainPlan {
            do_train: self.get("do_train")?,
            duration: self.duration()?,
            per_device_train_batch_size: self.get("per_device_train_batch_size")?,
            gradient_accumulation_steps: self.get("gradient_accumulation_steps")?,
            dataloader_drop_last: self.get("dataloader_drop_last")?,
            shuffle: !self.get("disable_shuffling")?,
            learning_rate: self.get("learning_rate")?,
            lr_scheduler: self.lr_scheduler()?,
            warmup: self.warmup()?,
            optimizer: self.optimizer()?,
            max_grad_norm: (max_grad_norm > 0.0).then_some(max_grad_norm),
            gradient_checkpointing: !self.get("disable_gradient_checkpointing")?,
            seed,
            data_seed: self.opt("data_seed")?.unwrap_or(seed),
            resume: self.resume()?,
        })
    }

    fn duration(&self) -> Result<Duration, RecipeError> {
        match u64::try_from(self.get::<i64>("max_steps")?) {
            Ok(steps) if steps > 0 => Ok(Duration::Steps(steps)),
            _ => Ok(Duration::Epochs(self.get("num_train_epochs")?)),
        }
    }

    /// Steps win over the ratio; fewer steps than one are a ratio too (transformers 5).
    fn warmup(&self) -> Result<Warmup, RecipeError> {
        let steps: f64 = self.get("warmup_steps")?;
        let ratio: f64 = self.get("warmup_ratio")?;
        Ok(match (steps, ratio) {
            (steps, _) if steps >= 1.0 => Warmup::Steps(steps as u64),
            (share, _) if share > 0.0 => Warmup::Share(share),
            (_, share) if share > 0.0 => Warmup::Share(share),
            _ => Warmup::Steps(0),
        })
    }

    fn optimizer(&self) -> Result<AdamW, RecipeError> {
        Ok(AdamW {
            beta1: self.get("adam_beta1")?,
            beta2: self.get("adam_beta2")?,
            epsilon: self.get("adam_epsilon")?,
            weight_decay: self.get("weight_decay")?,
        })
    }

    /// As in LLaMA-Factory: null resumes what is there unless told to overwrite it, `false`
    /// doesn't, `true` insists.
    fn resume(&self) -> Result<Resume, RecipeError> {
        let key = "resume_from_checkpoint";
        let overwrite: bool = self.get("overwrite_output_dir")?;
        let Some(node) = self.node(key) else {
            return Ok(if overwrite { Resume::Never } else { Resume::NewestIfAny });
        };
        match self.opt::<bool>(key) {
            Ok(Some(true)) if overwrite => {
                let rule = "the checkpoint to go on from would be overwritten";
                Err(self.contradiction(key, "overwrite_output_dir", rule))
            }
            Ok(Some(true)) => Ok(Resume::Newest),
            Ok(Some(false)) => Ok(Resume::Never),
            _ if is_word(&node, "") => Err(self.bad(key, "true, false or a checkpoint folder")),
            _ => Ok(Resume::From(self.get(key)?)),
        }
    }

    fn lr_scheduler(&self) -> Result<LrScheduler, RecipeError> {
        let name: String = self.get("lr_scheduler_type")?;
        let mut given = self.scheduler_arguments()?;
        let scheduler = match name.as_str() {
            "linear" => LrScheduler::Linear,
            "cosine" => LrScheduler::Cosine { num_cycles: given.cycles()? },
            "cosine_with_min_lr" => LrScheduler::CosineWithMinLr {
                num_cycles: given.cycles()?,
                min_lr_rate: given.min_lr_rate()?,
            },
            // transformers passes these two nothing, so what is given for them has no effect.
            "constant" => LrScheduler::Constant,
            "constant_with_warmup" => LrScheduler::ConstantWithWarmup,
            "inverse_sqrt" => LrScheduler::InverseSqrt { timescale: given.steps("timescale", 1)? },
            "warmup_stable_decay" => LrScheduler::WarmupStableDecay {
                num_stable_steps: given.steps("num_stable_steps", 0)?,
                num_decay_steps: given.steps("num_decay_steps", 0)?,
                warmup_type: given.ramp("warmup_type", Ramp::Linear)?,
                decay_type: given.ramp("decay_type", Ramp::Cosine)?,
                min_lr_ratio: given.share("min_lr_ratio")?.unwrap_or(0.0),
                num_cycles: given.cycles()?,
            },
            _ => return Err(self.bad("lr_scheduler_type", "the name of a schedule")),
        };
        given.nothing_left()?;
        Ok(scheduler)
    }

    fn scheduler_arguments(&self) -> Result<SchedulerArguments<'_>, RecipeError> {
        let given: Option<Json> = self.opt("lr_scheduler_kwargs")?;
        let mut values = IndexMap::new();
        if let Some(Json::Object(map)) = given {
            values.extend(map.into_iter().filter(|(_, value)| !value.is_null()));
        }
        Ok(SchedulerArguments { recipe: self, values })
    }
}

/// The entries of `lr_scheduler_kwargs` that no parameter has taken yet.
struct SchedulerArguments<'a> {
    recipe: &'a Recipe,
    values: IndexMap<String, Json>,
}

impl SchedulerArguments<'_> {
    fn take<T>(
        &mut self,
        name: &str,
        must_be: &str,
        read: impl Fn(&Json) -> Option<T>,
    ) -> Result<Option<T>, RecipeError> {
        match self.values.shift_remove(name) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.bad(format!("a map in which `{name}` is {must_be}"))),
            },
        }
    }

    fn bad(&self, must_be: impl Into<String>) -> RecipeError {
        self.recipe.bad("lr_scheduler_kwargs", must_be)
    }

    fn cycles(&mut self) -> Result<f64, RecipeError> {
        let read = |value: &Json| value.as_f64().filter(|value| *value >= 0.0);
        Ok(self.take("num_cycles", "a number, 0 or more", read)?.unwrap_or(0.5))
    }

    fn share(&mut self, name: &str) -> Result<Option<f64>, RecipeError> {
        let read = |value: &Json| value.as_f64().filter(|value| (0.0..=1.0).contains(value));
        self.take(name, "a number from 0 to 1", read)
    }

    fn steps(&mut self, name: &str, least: u64) -> Result<Option<u64>, RecipeError> {
        let read = |value: &Json| value.as_u64().filter(|value| *value >= least);
        self.take(name, "a whole number of steps", read)
    }

    fn ramp(&mut self, name: &str, default: Ramp) -> Result<Ramp, RecipeError> {
        let ramps = [Ramp::Linear, Ramp::Cosine, Ramp::OneMinusSqrt];
        let read =
            |value: &Json| ramps.into_iter().find(|ramp| value.as_str() == Some(ramp.name()));
        Ok(self.take(name, "`linear`, `cosine` or `1-sqrt`", read)?.unwrap_or(default))
    }

    /// `min_lr_rate`, or `min_lr` as a share of the peak; one of the two must be there.
    fn min_lr_rate(&mut self) -> Result<f64, RecipeError> {
        let peak: f64 = self.recipe.get("learning_rate")?;
        let read = |value: &Json| value.as_f64().filter(|value| (0.0..=peak).contains(value));
        let absolute = self.take("min_lr", "a number from 0 to `learning_rate`", read)?;
        match (absolute, self.share("min_lr_rate")?) {
            (Some(min_lr), None) => Ok(min_lr / peak),
            (None, Some(rate)) => Ok(rate),
            _ => Err(self
                .bad("a map with either `min_lr` or `min_lr_rate`, as `cosine_with_min_lr` needs")),
        }
    }

    fn nothing_left(&self) -> Result<(), RecipeError> {
        let Some(name) = self.values.keys().next() else { return Ok(()) };
        let name_of_type: String = self.recipe.get("lr_scheduler_type")?;
        let rule = format!("the schedule `{name_of_type}` has no parameter `{name}`");
        Err(self.recipe.contradiction("lr_scheduler_kwargs", "lr_scheduler_type", rule))
    }
}
