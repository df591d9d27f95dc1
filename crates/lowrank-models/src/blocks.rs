//! What architectures are made of: each block once, for all of them.

pub mod attention;
pub mod decoder;
pub mod mlp;
pub mod rotary;
