//! Hugging Face model folders as differentiable models: one file per architecture.
//!
//! Batches are packed: ids of all sequences end to end, no padding ([`Input`], [`Sequences`]). A
//! [`Model`] is a [`Network`] and a [`Head`], built by walking the checkpoint's own names with a
//! [`Builder`]; adapters attach to its modules by name and no architecture knows of them.

pub mod arch;
pub mod blocks;
mod builder;
mod config;
mod error;
mod generate;
mod image_tokens;
mod kinds;
mod labels;
mod model;
mod network;
mod peft_model;
mod save;
mod sequences;
mod task;
pub mod task_heads;
mod weights;

pub use arch::{ARCHITECTURES, Architecture, Beside, Family, Modality, OtherType};
pub use builder::{Builder, Built, DropoutSite, FreshInit, NormShape};
pub use config::Config;
pub use error::{Error, Result};
pub use generate::{
    Barred, Forced, GenerateOptions, Sampling, generate, generate_after, generation_start,
};
pub use image_tokens::ImageTokens;
pub use kinds::{Openness, Working};
pub use labels::{LABELS_NAME, LabelNames};
pub use model::{Model, OpenOptions, ProblemType};
pub use network::{BlockCache, Cache, Context, Encoded, Network, recompute_block};
pub use peft_model::{DEFAULT_ADAPTER, ParameterCount, PeftModel, get_peft_model};
pub use save::{SaveOptions, Saved, Shard};
pub use sequences::{Input, Padded, Sequences};
pub use task::Task;
pub use task_heads::Head;
pub use weights::{WeightPlace, Weights};
