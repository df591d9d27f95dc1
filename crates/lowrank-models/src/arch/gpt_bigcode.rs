//! GPTBigCode (SantaCoder, StarCoder): GPT-2 whose query heads share one key and one value head.
//! Papers: arXiv:2301.03988, arXiv:1911.02150. Reference: transformers
//! `models/gpt_bigcode/modeling_gpt_bigcode.py`.

use lowrank_autograd::ops::AttentionShape;

use super::{
    Architecture, Parts,
    gpt2::{self, Gpt},
};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{CausalAttention, Fused, Projections},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gpt_bigcode",
    class: "GPTBigCode",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    prefixes: &["transformer"],
    paper: "arXiv:2301.03988",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let gpt = Gpt { c: &c.with_aliases(gpt2::ALIASES), dropout: 0.1 };
    let network = gpt.with_learned_positions(&b.base(), |_, b| {
        let layer = |name: &str, input, out| b.linear(name, input, out, true);
        gpt.pre_norm_block(b, |b| attention(gpt, b), layer)
    })?;
    gpt2::finish(c, task, network, b)
}

/// One key head for all after the queries, or without `multi_query` query, key and value of each
/// head beside each other.
fn attention(gpt: Gpt<'_>, b: &Builder) -> Result<CausalAttention> {
    let hidden = gpt.width()?;
    let shape = gpt2::attention(gpt.c, 0)?;
    let (groups, kv_heads) = match gpt.c.switch_or("multi_query", true)? {
        true => (1, 1),
        false => (shape.heads, shape.heads),
    };
    let width = hidden + 2 * kv_heads * shape.head_dim;
    let qkv = Fused::new(b.linear("c_attn", hidden, width, true)?, groups);
    let output = b.linear("c_proj", hidden, hidden, true)?;
    let shape = AttentionShape { kv_heads, ..shape };
    let dropout = gpt.attention_dropout(b)?;
    Ok(CausalAttention::new(Projections::Fused(qkv), output, shape, dropout))
}
