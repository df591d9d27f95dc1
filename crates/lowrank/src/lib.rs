//! Pretrain, fine-tune with LoRA, align and serve large models in one program.
//!
//! This crate re-exports the library; its binary is the command line.

pub use lowrank_autograd as autograd;
pub use lowrank_data as data;
pub use lowrank_models as models;
pub use lowrank_peft as peft;
pub use lowrank_train as train;
