//! The course of the learning rate as a recipe gives it; [`Schedule`] computes it.

use crate::schedule::{Schedule, ScheduleError, warmup_steps};
use serde_json::{Map, Value};
use std::fmt;

/// `lr_scheduler_type` and `lr_scheduler_kwargs`, which are known to go together.
#[derive(Debug, Clone, PartialEq)]
pub struct LrScheduler {
    /// The schedule's name in transformers.
    pub lr_scheduler_type: String,
    /// Its parameters, as transformers' function takes them.
    pub lr_scheduler_kwargs: Map<String, Value>,
}

impl LrScheduler {
    /// The schedule of a run with so many steps.
    ///
    /// # Errors
    /// [`ScheduleError`] if the schedule doesn't exist or doesn't have such parameters; a plan
    /// that was made from a recipe has been checked for that.
    pub fn schedule(
        &self,
        learning_rate: f64,
        warmup: Warmup,
        num_training_steps: u64,
    ) -> Result<Schedule, ScheduleError> {
        Schedule::new(
            &self.lr_scheduler_type,
            learning_rate,
            warmup.steps(num_training_steps),
            num_training_steps,
            &self.lr_scheduler_kwargs,
        )
    }
}

impl fmt::Display for LrScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lr_scheduler_type)?;
        if self.lr_scheduler_kwargs.is_empty() {
            return Ok(());
        }
        write!(f, " {}", Value::Object(self.lr_scheduler_kwargs.clone()))
    }
}

/// How the learning rate begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// So many steps, maybe none.
    Steps(u64),
    /// A share of all steps, from above 0 to 1.
    Share(f64),
}

impl Warmup {
    /// The warmup's steps in a run of `total` steps: a share is rounded up, as in transformers.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Share(share) => warmup_steps(share, total),
        }
    }
}
