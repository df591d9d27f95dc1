//! PEFT's adapters: configurations, target matching, layers, files and merging.
//!
//! A model is made of this crate's [`layers`]; each registers itself in the model's [`Modules`]
//! under its Hugging Face name. Adapters are then attached by name, to any architecture.

mod adapter;
mod adapter_file;
pub mod adapter_names;
mod base_tensor;
pub mod config_error;
pub mod default_targets;
mod error;
mod expert_tensors;
pub mod layers;
pub mod lora_config;
pub mod methods;
mod modules;
mod pass;
pub mod targets;
pub mod task_type;
mod tensor_file;
pub mod torch_file;

pub use adapter::{Adapter, BaseModel, keep_merge, unmerge};
pub use adapter_file::{WEIGHTS_NAME, adapter_tensors};
pub use base_tensor::{BaseTensor, CopyReason, Stored};
pub use error::{Error, Result};
pub use lora_config::LoraConfig;
pub use modules::{Module, Modules};
pub use pass::Pass;
pub use task_type::{PeftType, TaskType};
pub use tensor_file::serialize;
