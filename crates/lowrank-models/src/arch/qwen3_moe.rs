//! Qwen3-MoE: Qwen3 with experts in some layers, none of which is shared.
//! Paper: arXiv:2505.09388. Reference: transformers `models/qwen3_moe/modeling_qwen3_moe.py`.

use super::{
    Architecture, Parts, llama,
    mixtral::expert_count,
    qwen2_moe::{ExpertSizes, decoder},
};
use crate::{Builder, Config, Result, Task, blocks::attention::SelfAttentionShape};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "qwen3_moe",
    class: "Qwen3Moe",
    paper: "arXiv:2505.09388",
    prefixes: &["model", "transformer"],
    question_prefix: Some("transformer"),
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_defaults([("num_key_value_heads", 4.into()), ("sliding_window", 4096.into())]);
    let bias = c.switch_or("attention_bias", false)?;
    let window = match c.switch_or("use_sliding_window", false)? {
        true => c.size_or_none("sliding_window")?,
        false => None,
    };
    let attention = SelfAttentionShape {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: Some(c.epsilon_or("rms_norm_eps", 1e-6)?),
        window,
        ..llama::attention(c)?
    };
    let experts = expert_count(c, ["num_local_experts", "num_experts"], 128)?;
    let sizes = ExpertSizes { experts, inner: 768, chosen: 8 };
    decoder(c, task, b, |_| attention.clone(), sizes, |_, _| Ok(None))
}
