//! StableLM: Llama with LayerNorm, heads that turn by a quarter, and in some sizes norms of each head
//! and blocks whose attention and MLP read the same.
//! Paper: arXiv:2402.17834. Reference: transformers `models/stablelm/modeling_stablelm.py`.

use super::{Architecture, OtherType, Parts, llama};
use crate::{
    Builder, Config, NormShape, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::{BranchEnd, Decoder, DecoderLayer, DecoderShape},
        head_norm::HeadNorm,
        mlp::GatedMlp,
        rotary::Rotary,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "stablelm",
    other_types: &[OtherType {
        model_type: "stablelm_epoch",
        class: Some("StableLMEpoch"),
        fields: &[("norm_eps", "layer_norm_eps"), ("rope_pct", "partial_rotary_factor")],
        ..OtherType::REMOTE
    }],
    class: "StableLm",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    paper: "arXiv:2402.17834",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_defaults([
        ("num_key_value_heads", 32.into()),
        ("partial_rotary_factor", 0.25.into()),
        ("hidden_dropout", 0.0.into()),
    ]);
    if c.number_or("rotary_scaling_factor", 1.0)? != 1.0 {
        return Err(c.not_implemented("rotary_scaling_factor", "1"));
    }
    let qkv_bias = c.switch_or("use_qkv_bias", false)?;
    let attention = SelfAttentionShape { qkv_bias, ..llama::attention(c)? };
    let norm = NormShape::layer(attention.hidden_size, c.epsilon_or("layer_norm_eps", 1e-5)?);
    let shape = DecoderShape {
        norm,
        ..llama::decoder_shape(c, Rotary::from_config(c, attention.head_dim)?)?
    };
    let mlp = llama::mlp(c)?;
    let normed_heads = c.switch_or("qk_layernorm", false)?;
    let parallel = c.switch_or("use_parallel_residual", false)?;
    let dropout = c.probability_or("hidden_dropout", 0.0)?;
    let layer = |_, b: &Builder| {
        let place = b.at("self_attn");
        let mut self_attn = SelfAttention::build(&attention, &place)?;
        if normed_heads {
            self_attn = self_attn.with_head_norms(head_norms(&attention, norm.eps, &place)?);
        }
        let mlp = GatedMlp::build(&mlp, &b.at("mlp"))?;
        let layer = match parallel {
            true => DecoderLayer::parallel(self_attn, mlp, b.norm("input_layernorm", norm)?),
            false => llama::layer_of(self_attn, mlp, norm, b)?,
        };
        let end = BranchEnd::dropout(b.dropout("dropout", dropout));
        Ok(layer.ending([BranchEnd::default(), end]))
    };
    llama::finish(c, task, Decoder::build(&shape, &b.base(), layer)?, b)
}

/// A norm without offsets for each head of queries and of keys.
fn head_norms(s: &SelfAttentionShape, eps: f64, b: &Builder) -> Result<[HeadNorm; 2]> {
    let norm = NormShape { bias: false, ..NormShape::layer(s.head_dim, eps) };
    let each = |name: &str, heads| {
        let norms = (0..heads).map(|i| b.at(name).nth("norms", i).norm("", norm));
        norms.collect::<Result<_>>().map(HeadNorm::Each)
    };
    Ok([each("q_layernorm", s.heads)?, each("k_layernorm", s.kv_heads)?])
}
