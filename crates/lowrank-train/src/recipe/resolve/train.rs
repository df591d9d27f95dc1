//! The steps' part of a plan: duration, schedule, optimizer, and where the run begins.

use super::is_word;
use crate::recipe::plan::{AdamW, Duration, LrScheduler, Resume, TrainPlan, Warmup};
use crate::recipe::{Recipe, RecipeError};
use serde_json::{Map, Value as Json};

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

    /// Tried out here, so that a schedule and parameters that don't go together are an error of
    /// the recipe and not of the run; the number of steps has no part in that.
    fn lr_scheduler(&self) -> Result<LrScheduler, RecipeError> {
        let given: Option<Json> = self.opt("lr_scheduler_kwargs")?;
        let mut lr_scheduler_kwargs = Map::new();
        if let Some(Json::Object(map)) = given {
            lr_scheduler_kwargs.extend(map.into_iter().filter(|(_, value)| !value.is_null()));
        }
        let lr_scheduler_type = self.get("lr_scheduler_type")?;
        let scheduler = LrScheduler { lr_scheduler_type, lr_scheduler_kwargs };
        let kwargs = self.is_set("lr_scheduler_kwargs");
        let key = if kwargs { "lr_scheduler_kwargs" } else { "lr_scheduler_type" };
        match scheduler.schedule(self.get("learning_rate")?, Warmup::Steps(0), 1000) {
            Ok(_) => Ok(scheduler),
            Err(why) => Err(RecipeError::Schedule { at: self.place(key), why }),
        }
    }
}
