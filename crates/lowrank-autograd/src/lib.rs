//! A small LoRA-aware tape over candle tensors, with its operations and kernels.
//!
//! candle gives storage, devices and dtypes; its own autograd is not used. A [`Value`] is a tensor
//! with, perhaps, a place on the tape: only values with a path to a trainable [`Parameter`] have
//! one, and each operation keeps for the backward pass just what those gradients need.
//!
//! Layout throughout: activations are `[tokens, features]`, sequences packed end to end without
//! padding; [`ops::Span`] says where each one lies. They are f32, or bf16 where weights of bf16 lead
//! to them; sums over layers, logits, losses, parameters and what gradients are added up in are f32
//! in any case, as are most results on devices whose operations are composed of candle's.

mod awake;
mod composed;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod elements;
mod error;
mod gradients;
mod kept;
pub mod kernels;
pub mod ops;
mod parameter;
pub mod profile;
pub mod random;
mod recompute;
pub mod reference;
mod tape;
mod value;
mod weight;

pub use awake::Awake;
pub use composed::compose_on_cpu;
pub use device::{PLACEMENTS, Placement, gpu_memory};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use parameter::{Parameter, ParameterId};
pub use random::{Dropout, Jitter, Key, RowKeys};
pub use recompute::recompute;
pub use value::Value;
pub use weight::{MappedFile, Weight};
