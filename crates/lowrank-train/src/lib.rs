//! Recipes, objectives, optimizers, the training loop, checkpoints and logs.

mod batch;
pub mod checkpoint;
pub mod durable;
mod error;
pub mod objectives;
pub mod optimizers;
pub mod recipe;
pub mod report;
pub mod schedule;

pub use batch::{Batch, Targets, token_targets};
pub use error::{Error, Result};
