//! Qwen3: Llama with norms on query and key heads, and windows in some layers.
//! Paper: arXiv:2505.09388. Reference: transformers `models/qwen3/modeling_qwen3.py`.

use super::{Architecture, Parts, llama, qwen2::layer_windows};
use crate::{Builder, Config, Result, Task, blocks::attention::SelfAttentionShape};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "qwen3",
    class: "Qwen3",
    paper: "arXiv:2505.09388",
    prefixes: &["model", "transformer"],
    question_prefix: Some("transformer"),
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let bias = c.switch_or("attention_bias", false)?;
    let attention = SelfAttentionShape {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: Some(c.epsilon_or("rms_norm_eps", 1e-6)?),
        // Unlike Llama's, the head width doesn't follow from the hidden size.
        head_dim: c.size_or("head_dim", 128)?,
        ..llama::attention(c)?
    };
    let windows = layer_windows(c)?;
    let layer = |i: usize| SelfAttentionShape {
        window: windows.get(i).copied().flatten(),
        ..attention.clone()
    };
    llama::with_attention(c, task, b, layer)
}
