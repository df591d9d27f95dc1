//! PEFT's adapters: configurations, target matching, layers, files and merging.
//!
//! A model is made of this crate's [`layers`]; each registers itself in the model's [`Modules`]
//! under its Hugging Face name. Adapters are then attached by name, to any architecture.

mod base_tensor;
pub mod layers;
pub mod methods;
mod modules;
mod pass;
pub mod task_type;

pub use base_tensor::{BaseTensor, CopyReason};
pub use modules::{Module, Modules};
pub use pass::Pass;
pub use task_type::{PeftType, TaskType};
