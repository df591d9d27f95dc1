//! The course of the learning rate, in the terms of transformers' `optimization.py`.

use std::fmt;

/// A schedule with its parameters (`lr_scheduler_type` and `lr_scheduler_kwargs`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LrScheduler {
    /// Down to 0 in a straight line.
    Linear,
    /// Down along a cosine.
    Cosine {
        /// Waves; 0.5 goes down once.
        num_cycles: f64,
    },
    /// Down along a cosine to a share of the peak.
    CosineWithMinLr {
        /// Waves; 0.5 goes down once.
        num_cycles: f64,
        /// The share (`min_lr` divided by the peak, or `min_lr_rate`).
        min_lr_rate: f64,
    },
    /// The peak throughout; there is no warmup either.
    Constant,
    /// The peak after the warmup.
    ConstantWithWarmup,
    /// Down with the square root of the step.
    InverseSqrt {
        /// Time scale in steps; `None`: the warmup's steps, or 10,000 without warmup.
        timescale: Option<u64>,
    },
    /// Warmup, peak, decay.
    WarmupStableDecay {
        /// Steps at the peak; `None`: a third of those after the warmup, rounded down.
        num_stable_steps: Option<u64>,
        /// Steps of the decay; `None`: those after the warmup, less a third rounded down.
        num_decay_steps: Option<u64>,
        /// Form of the warmup.
        warmup_type: Ramp,
        /// Form of the decay.
        decay_type: Ramp,
        /// Where warmup begins and decay ends, as a share of the peak.
        min_lr_ratio: f64,
        /// Waves of a cosine decay; 0.5 goes down once.
        num_cycles: f64,
    },
}

/// The form of a way up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ramp {
    /// A straight line.
    Linear,
    /// A cosine.
    Cosine,
    /// `1 - √x`.
    OneMinusSqrt,
}

impl fmt::Display for LrScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.write_str("linear"),
            Self::Cosine { num_cycles } => write!(f, "cosine (num_cycles {num_cycles})"),
            Self::CosineWithMinLr { num_cycles, min_lr_rate } => {
                write!(f, "cosine_with_min_lr (num_cycles {num_cycles}, min_lr_rate {min_lr_rate})")
            }
            Self::Constant => f.write_str("constant"),
            Self::ConstantWithWarmup => f.write_str("constant_with_warmup"),
            Self::InverseSqrt { timescale: None } => f.write_str("inverse_sqrt"),
            Self::InverseSqrt { timescale: Some(steps) } => {
                write!(f, "inverse_sqrt (timescale {steps})")
            }
            Self::WarmupStableDecay {
                num_stable_steps,
                num_decay_steps,
                warmup_type,
                decay_type,
                min_lr_ratio,
                num_cycles,
            } => {
                let steps = |n: &Option<u64>| n.map_or("default".to_owned(), |n| n.to_string());
                write!(
                    f,
                    "warmup_stable_decay (num_stable_steps {}, num_decay_steps {}, warmup_type \
                     {warmup_type}, decay_type {decay_type}, min_lr_ratio {min_lr_ratio}, \
                     num_cycles {num_cycles})",
                    steps(num_stable_steps),
                    steps(num_decay_steps),
                )
            }
        }
    }
}

impl Ramp {
    /// The name that transformers gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::OneMinusSqrt => "1-sqrt",
        }
    }
}

impl fmt::Display for Ramp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
            Self::Share(share) => (share * total as f64).ceil() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // math.ceil(100 * 0.07) is 8 in Python too: the product is 7.000000000000001
    fn a_share_is_rounded_up_as_in_transformers() {
        assert_eq!(Warmup::Share(0.1).steps(100), 10);
        assert_eq!(Warmup::Share(0.07).steps(100), 8);
        assert_eq!(Warmup::Share(0.1).steps(3), 1);
        assert_eq!(Warmup::Steps(20).steps(3), 20);
    }
}
