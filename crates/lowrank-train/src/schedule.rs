//! Learning-rate schedules: the rate of a step as a pure function of its number, so that there is
//! no state to save.
//!
//! The same names, arguments and numbers as `get_scheduler` of transformers 5
//! (`transformers/optimization.py`). Step 0 is the first optimizer step.

use std::f64::consts::PI;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Why a schedule could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum ScheduleError {
    #[error("`lr_scheduler_type` is `{found}`; it must be one of {}", NAMES.join(", "))]
    UnknownType { found: String },
    #[error("`lr_scheduler_kwargs` of `{lr_scheduler_type}`: {reason}")]
    Arguments { lr_scheduler_type: String, reason: String },
    #[error("`learning_rate` is {found}; it must be a number of 0 or more")]
    LearningRate { found: f64 },
}

/// The values of `lr_scheduler_type`.
pub const NAMES: [&str; 10] = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
];

/// A learning rate for every step.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    learning_rate: f64,
    num_warmup_steps: f64,
    num_training_steps: f64,
    shape: Shape,
}

/// What follows the warm-up, with the arguments of transformers' functions.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Linear,
    Cosine { num_cycles: f64, min_lr_rate: f64 },
    CosineWithRestarts { num_cycles: f64 },
    CosineWarmupWithMinLr { num_cycles: f64, min_lr_rate: f64, warmup_lr_rate: Option<f64> },
    Polynomial { end_rate: f64, power: f64 },
    Constant,
    ConstantWithWarmup,
    InverseSqrt { timescale: f64 },
    WarmupStableDecay(WarmupStableDecay),
}

#[derive(Debug, Clone, PartialEq)]
struct WarmupStableDecay {
    num_stable_steps: f64,
    num_decay_steps: f64,
    warmup_type: Curve,
    decay_type: Curve,
    min_lr_ratio: f64,
    num_cycles: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
enum Curve {
    #[serde(rename = "linear")]
    Linear,
    #[serde(rename = "cosine")]
    Cosine,
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// Warm-up steps of a `warmup_ratio`: a started step counts as a whole one.
pub fn warmup_steps(warmup_ratio: f64, num_training_steps: u64) -> u64 {
    (num_training_steps as f64 * warmup_ratio).ceil() as u64
}

impl Schedule {
    /// The schedule `lr_scheduler_type` with the peak `learning_rate` and the arguments
    /// `lr_scheduler_kwargs` of a recipe.
    ///
    /// `warmup_stable_decay` without `num_decay_steps` holds the peak for a third of the steps
    /// after the warm-up, as LLaMA-Factory does; with only one of the two numbers of steps, the
    /// other gets the rest.
    ///
    /// # Errors
    /// [`ScheduleError`] if there is no such schedule, or an argument is unknown, missing or of
    /// the wrong kind.
    pub fn new(
        lr_scheduler_type: &str,
        learning_rate: f64,
        num_warmup_steps: u64,
        num_training_steps: u64,
        lr_scheduler_kwargs: &Map<String, Value>,
    ) -> Result<Self, ScheduleError> {
        if !(learning_rate.is_finite() && learning_rate >= 0.0) {
            return Err(ScheduleError::LearningRate { found: learning_rate });
        }
        let (warmup, steps) = (num_warmup_steps as f64, num_training_steps as f64);
        let arguments = Arguments { lr_scheduler_type, lr_scheduler_kwargs };
        let shape = arguments.shape(learning_rate, warmup, steps)?;
        Ok(Self { learning_rate, num_warmup_steps: warmup, num_training_steps: steps, shape })
    }

    /// The learning rate of optimizer step `step`, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step as f64)
    }

    fn factor(&self, step: f64) -> f64 {
        let (warmup, total) = (self.num_warmup_steps, self.num_training_steps);
        let in_warmup = step < warmup;
        let warmed = step / warmup.max(1.0);
        let progress = (step - warmup) / (total - warmup).max(1.0);
        match &self.shape {
            Shape::Constant => 1.0,
            Shape::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate } => {
                match warmup_lr_rate {
                    None if in_warmup => (step + 1.0) / warmup.max(1.0),
                    Some(first) if in_warmup => {
                        first + (1.0 - first) * step / (warmup - 1.0).max(1.0)
                    }
                    _ => {
                        let progress = (step - warmup + 1.0) / (total - warmup).max(1.0);
                        between(*min_lr_rate, cosine(*num_cycles, progress))
                    }
                }
            }
            Shape::WarmupStableDecay(shape) => shape.factor(step, warmup),
            _ if in_warmup => warmed,
            Shape::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
            Shape::Cosine { num_cycles, min_lr_rate } => {
                between(*min_lr_rate, cosine(*num_cycles, progress))
            }
            Shape::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Shape::CosineWithRestarts { num_cycles } => {
                (0.5 * (1.0 + (PI * ((num_cycles * progress) % 1.0)).cos())).max(0.0)
            }
            Shape::Polynomial { end_rate, .. } if step > total || total <= warmup => *end_rate,
            Shape::Polynomial { end_rate, power } => {
                let remaining = 1.0 - (step - warmup) / (total - warmup);
                (1.0 - end_rate) * remaining.powf(*power) + end_rate
            }
            Shape::ConstantWithWarmup => 1.0,
            Shape::InverseSqrt { timescale } => {
                1.0 / ((step + timescale - warmup) / timescale).sqrt()
            }
        }
    }
}

impl WarmupStableDecay {
    fn factor(&self, step: f64, warmup: f64) -> f64 {
        let decay_begins = warmup + self.num_stable_steps;
        let decays = |progress: f64| match self.decay_type {
            Curve::Linear => 1.0 - progress,
            Curve::Cosine => cosine(self.num_cycles, progress),
            Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
        };
        let rises = |progress: f64| match self.warmup_type {
            Curve::Linear => progress,
            Curve::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
            Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
        };
        if step < warmup {
            between(self.min_lr_ratio, rises(step / warmup.max(1.0)))
        } else if step < decay_begins {
            1.0
        } else if step < decay_begins + self.num_decay_steps {
            let progress = (step - decay_begins) / self.num_decay_steps.max(1.0);
            between(self.min_lr_ratio, decays(progress))
        } else {
            self.min_lr_ratio
        }
    }
}

/// From 1 down to 0 in half a cycle, and back up in the next.
fn cosine(num_cycles: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())
}

/// Scales a factor from 0..1 to `least`..1.
fn between(least: f64, factor: f64) -> f64 {
    (factor * (1.0 - least) + least).max(0.0)
}

/// A recipe's words, on their way to a shape.
struct Arguments<'a> {
    lr_scheduler_type: &'a str,
    lr_scheduler_kwargs: &'a Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CosineArguments {
    num_cycles: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MinLrArguments {
    num_cycles: Option<f64>,
    min_lr: Option<f64>,
    min_lr_rate: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WarmupMinLrArguments {
    num_cycles: Option<f64>,
    min_lr: Option<f64>,
    min_lr_rate: Option<f64>,
    warmup_lr_rate: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolynomialArguments {
    lr_end: Option<f64>,
    power: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InverseSqrtArguments {
    timescale: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WarmupStableDecayArguments {
    num_stable_steps: Option<u64>,
    num_decay_steps: Option<u64>,
    warmup_type: Option<Curve>,
    decay_type: Option<Curve>,
    min_lr_ratio: Option<f64>,
    num_cycles: Option<f64>,
}

/// Half a wave: from the peak down to the least rate.
const HALF_A_CYCLE: f64 = 0.5;

impl Arguments<'_> {
    fn shape(&self, peak: f64, warmup: f64, steps: f64) -> Result<Shape, ScheduleError> {
        Ok(match self.lr_scheduler_type {
            "linear" => self.parse().map(|NoArguments {}| Shape::Linear)?,
            "constant" => self.parse().map(|NoArguments {}| Shape::Constant)?,
            "constant_with_warmup" => {
                self.parse().map(|NoArguments {}| Shape::ConstantWithWarmup)?
            }
            "cosine" => {
                let CosineArguments { num_cycles } = self.parse()?;
                let num_cycles = num_cycles.unwrap_or(HALF_A_CYCLE);
                Shape::Cosine { num_cycles, min_lr_rate: 0.0 }
            }
            "cosine_with_restarts" => {
                let CosineArguments { num_cycles } = self.parse()?;
                Shape::CosineWithRestarts { num_cycles: num_cycles.unwrap_or(1.0) }
            }
            "cosine_with_min_lr" => {
                let MinLrArguments { num_cycles, min_lr, min_lr_rate } = self.parse()?;
                let min_lr_rate = self.min_lr_rate(min_lr, min_lr_rate, peak)?;
                Shape::Cosine { num_cycles: num_cycles.unwrap_or(HALF_A_CYCLE), min_lr_rate }
            }
            "cosine_warmup_with_min_lr" => {
                let given: WarmupMinLrArguments = self.parse()?;
                Shape::CosineWarmupWithMinLr {
                    num_cycles: given.num_cycles.unwrap_or(HALF_A_CYCLE),
                    min_lr_rate: self.min_lr_rate(given.min_lr, given.min_lr_rate, peak)?,
                    warmup_lr_rate: given.warmup_lr_rate,
                }
            }
            "polynomial" => {
                let PolynomialArguments { lr_end, power } = self.parse()?;
                let lr_end = lr_end.unwrap_or(1e-7);
                if lr_end >= peak {
                    let reason = "`lr_end` must be below `learning_rate`";
                    return Err(self.wrong(format!("{reason}; it is {lr_end}")));
                }
                Shape::Polynomial { end_rate: lr_end / peak, power: power.unwrap_or(1.0) }
            }
            "inverse_sqrt" => self.inverse_sqrt(warmup)?,
            "warmup_stable_decay" => self.warmup_stable_decay(warmup, steps)?,
            other => return Err(ScheduleError::UnknownType { found: other.to_owned() }),
        })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, ScheduleError> {
        let arguments = Value::Object(self.lr_scheduler_kwargs.clone());
        serde_json::from_value(arguments).map_err(|error| self.wrong(error.to_string()))
    }

    fn wrong(&self, reason: String) -> ScheduleError {
        ScheduleError::Arguments { lr_scheduler_type: self.lr_scheduler_type.to_owned(), reason }
    }

    fn min_lr_rate(
        &self,
        min_lr: Option<f64>,
        min_lr_rate: Option<f64>,
        peak: f64,
    ) -> Result<f64, ScheduleError> {
        match (min_lr, min_lr_rate) {
            (Some(min_lr), None) if peak > 0.0 => Ok(min_lr / peak),
            (Some(_), None) => Err(self.wrong("`min_lr` needs a `learning_rate` above 0".into())),
            (None, Some(rate)) => Ok(rate),
            _ => Err(self.wrong("give either `min_lr` or `min_lr_rate`".into())),
        }
    }

    fn inverse_sqrt(&self, warmup: f64) -> Result<Shape, ScheduleError> {
        let InverseSqrtArguments { timescale } = self.parse()?;
        match timescale {
            Some(0) => Err(self.wrong("`timescale` is 0; it must be 1 or more".into())),
            Some(timescale) => Ok(Shape::InverseSqrt { timescale: timescale as f64 }),
            None if warmup > 0.0 => Ok(Shape::InverseSqrt { timescale: warmup }),
            None => Ok(Shape::InverseSqrt { timescale: 10_000.0 }),
        }
    }

    fn warmup_stable_decay(&self, warmup: f64, steps: f64) -> Result<Shape, ScheduleError> {
        let given: WarmupStableDecayArguments = self.parse()?;
        let stable = given.num_stable_steps.map(|steps| steps as f64);
        let decay = given.num_decay_steps.map(|steps| steps as f64);
        let remaining = steps - warmup;
        // The number of stable steps may come out negative, which makes the decay start within
        // the warm-up, as in transformers.
        let (num_stable_steps, num_decay_steps) = match (stable, decay) {
            (Some(stable), Some(decay)) => (stable, decay),
            (None, Some(decay)) => (remaining - decay, decay),
            (Some(stable), None) => (stable, remaining - stable),
            (None, None) => {
                let stable = (remaining / 3.0).floor();
                (stable, remaining - stable)
            }
        };
        Ok(Shape::WarmupStableDecay(WarmupStableDecay {
            num_stable_steps,
            num_decay_steps,
            warmup_type: given.warmup_type.unwrap_or(Curve::Linear),
            decay_type: given.decay_type.unwrap_or(Curve::Cosine),
            min_lr_ratio: given.min_lr_ratio.unwrap_or(0.0),
            num_cycles: given.num_cycles.unwrap_or(HALF_A_CYCLE),
        }))
    }
}
