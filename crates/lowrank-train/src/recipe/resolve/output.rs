//! When a plan evaluates, logs and saves, and where to.

use crate::recipe::plan::{Cadence, EvalPlan, Interval, OutputPlan};
use crate::recipe::{Recipe, RecipeError};

/// Trackers that transformers knows and lowrank doesn't write to.
const OTHER_TRACKERS: [&str; 12] = [
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "mlflow",
    "neptune",
    "swanlab",
    "trackio",
    "wandb",
];

impl Recipe {
    pub(super) fn eval(&self) -> Result<EvalPlan, RecipeError> {
        let eval_strategy = self.cadence("eval_strategy", "eval_steps")?;
        let asked: bool = self.get("do_eval")?;
        let do_eval = asked || eval_strategy != Cadence::Never;
        let has_data = self.val_size()?.is_some() || self.is_set("eval_dataset");
        if do_eval && !has_data {
            let key = if asked { "do_eval" } else { "eval_strategy" };
            let rule = "evaluation needs rows: set `val_size` or `eval_dataset`";
            return Err(self.contradiction(key, "val_size", rule));
        }
        let per_device_eval_batch_size = self.get("per_device_eval_batch_size")?;
        Ok(EvalPlan { do_eval, eval_strategy, per_device_eval_batch_size })
    }

    pub(super) fn output(&self) -> Result<OutputPlan, RecipeError> {
        Ok(OutputPlan {
            output_dir: self.get("output_dir")?,
            overwrite_output_dir: self.get("overwrite_output_dir")?,
            logging: self.cadence("logging_strategy", "logging_steps")?,
            logging_first_step: self.get("logging_first_step")?,
            save: self.cadence("save_strategy", "save_steps")?,
            // transformers takes 0 for no limit.
            save_total_limit: self.opt("save_total_limit")?.filter(|limit| *limit > 0),
            save_only_model: self.get("save_only_model")?,
            plot_loss: self.get("plot_loss")?,
            tensorboard: self.trackers()?.iter().any(|name| name == "tensorboard" || name == "all"),
        })
    }

    fn cadence(&self, strategy: &'static str, steps: &'static str) -> Result<Cadence, RecipeError> {
        match self.get::<String>(strategy)?.as_str() {
            "steps" => {
                // Evaluation has no cadence of its own: it follows the log, as in transformers.
                let every = match self.opt::<f64>(steps)? {
                    Some(every) => every,
                    None => self.get("logging_steps")?,
                };
                Ok(Cadence::Every(interval(every)))
            }
            "epoch" => Ok(Cadence::Epoch),
            _ => Ok(Cadence::Never),
        }
    }

    fn trackers(&self) -> Result<Vec<String>, RecipeError> {
        let trackers: Vec<String> = self.get("report_to")?;
        let known = |name: &String| {
            matches!(name.as_str(), "none" | "all" | "tensorboard")
                || OTHER_TRACKERS.contains(&name.as_str())
        };
        if !trackers.iter().all(known) {
            return Err(self.bad("report_to", "`tensorboard`, `all` or `none`"));
        }
        Ok(trackers)
    }

    pub(super) fn absent_trackers(&self) -> Result<Option<String>, RecipeError> {
        let absent = self.trackers()?.into_iter();
        let absent: Vec<String> =
            absent.filter(|name| OTHER_TRACKERS.contains(&name.as_str())).collect();
        let reason = "curves go to files and to TensorBoard";
        Ok((!absent.is_empty()).then(|| format!("{} is ignored: {reason}", absent.join(", "))))
    }
}

fn interval(steps: f64) -> Interval {
    if steps < 1.0 { Interval::Share(steps) } else { Interval::Steps(steps as u64) }
}
