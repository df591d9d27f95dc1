//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in some layers.
//! Paper: arXiv:2407.10671. Reference: transformers `models/qwen2/modeling_qwen2.py`.

use super::{Architecture, Parts, llama};
use crate::{
    Builder, Config, Result, Task,
    blocks::{attention::SelfAttentionShape, layer_types::sliding_layers},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "qwen2",
    class: "Qwen2",
    paper: "arXiv:2407.10671",
    prefixes: &["model", "transformer"],
    question_prefix: Some("transformer"),
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let attention = SelfAttentionShape { qkv_bias: true, ..llama::attention(c)? };
    let windows = layer_windows(c)?;
    let layer = |i: usize| SelfAttentionShape {
        window: windows.get(i).copied().flatten(),
        ..attention.clone()
    };
    llama::with_attention(c, task, b, layer)
}

/// The window of each layer: by `layer_types`, or, in older configs, from `max_window_layers` on.
pub(super) fn layer_windows(c: &Config) -> Result<Vec<Option<usize>>> {
    let first = c.number_or("max_window_layers", 28.0)?;
    named_windows(c, |i| i as f64 >= first)
}

/// The window of each layer: by `layer_types`, or, in older configs, where `slides` says so.
pub(super) fn named_windows(
    c: &Config,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let window = match c.switch_or("use_sliding_window", false)? {
        true => c.size_or_none("sliding_window")?,
        false => None,
    };
    let slides = sliding_layers(c, slides)?;
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}
