//! Recipes, objectives, optimizers, the training loop, checkpoints and logs.
//!
//! ```text
//! recipe ── plan ── setup (model, adapter, rows, order) ── trainer ── output
//! ```

mod batch;
pub mod checkpoint;
mod collate;
mod data_options;
pub mod durable;
mod error;
mod evaluate;
mod loader;
pub mod objectives;
pub mod optimizers;
mod output;
mod prepare;
pub mod recipe;
pub mod report;
mod run_state;
pub mod schedule;
mod setup;
mod trainer;

pub use batch::{Batch, Targets, token_targets};
pub use collate::Collator;
pub use data_options::data_options;
pub use error::{Error, Result};
pub use evaluate::{Evaluation, evaluate};
pub use loader::{Loader, Order};
pub use prepare::{Rows, missing, needless, rows};
pub use run_state::{OPTIMIZER, RUN_STATE, RunState};
pub use setup::Setup;
pub use trainer::{Observer, STEP, StepReport, Summary, Trainer};
