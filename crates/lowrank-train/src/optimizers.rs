//! Optimizers, one file each.

mod adamw;

pub use adamw::{AdamW, AdamWSettings};
