//! Gemma 2: Gemma with caps on scores and logits, norms on both sides of attention and MLP, and a
//! sliding window in every other layer.
//! Paper: arXiv:2408.00118. Reference: transformers `models/gemma2/modeling_gemma2.py`.

use super::{Architecture, Parts, gemma, llama};
use crate::{
    Builder, Config, Head, NormShape, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::{BranchEnd, Decoder, DecoderLayer},
        layer_types::sliding_layers,
        mlp::{GatedMlp, MlpShape},
    },
    task_heads::TokenHead,
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gemma2",
    class: "Gemma2",
    paper: "arXiv:2408.00118",
    build,
    ..gemma::ENTRY
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let caps = [("attn_logit_softcapping", 50.0.into()), ("final_logit_softcapping", 30.0.into())];
    let c = &defaults(c).with_defaults(caps);
    let softcap = c.positive("attn_logit_softcapping")?.map(|cap| cap as f32);
    let attention = SelfAttentionShape { softcap, ..attention(c)? };
    let slides = sliding_layers(c, |i| i % 2 == 0)?;
    let (mlp, shape) = (mlp(c)?, gemma::decoder_shape(c)?);
    let layer = |i: usize, b: &Builder| {
        let window = attention.window.filter(|_| slides.get(i) == Some(&true));
        let attention = SelfAttentionShape { window, ..attention.clone() };
        layer(SelfAttention::build(&attention, &b.at("self_attn"))?, &mlp, shape.norm, b)
    };
    finish(c, task, Decoder::build(&shape, &b.base(), layer)?, b)
}

/// The config with what transformers takes where it says nothing.
pub(super) fn defaults(c: &Config) -> Config {
    c.with_defaults([
        ("num_attention_heads", 8.into()),
        ("num_key_value_heads", 4.into()),
        ("sliding_window", 4096.into()),
    ])
}

/// Gemma's attention with a scale of the config's own, and the window of those layers that slide.
pub(super) fn attention(c: &Config) -> Result<SelfAttentionShape> {
    let divisor = c.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    let (scale, window) = (Some(divisor.recip() as f32), c.size_or_none("sliding_window")?);
    Ok(SelfAttentionShape { scale, window, ..gemma::attention(c)? })
}

/// The MLP that the config's sizes describe.
pub(super) fn mlp(c: &Config) -> Result<MlpShape> {
    let activation = c.activation("hidden_activation", "gelu_pytorch_tanh")?;
    Ok(MlpShape { activation, ..llama::mlp(c)? })
}

/// A block at `b` with its four norms.
pub(super) fn layer(
    attention: SelfAttention,
    mlp: &MlpShape,
    norm: NormShape,
    b: &Builder,
) -> Result<DecoderLayer> {
    let mlp = GatedMlp::build(mlp, &b.at("mlp"))?;
    let norm = |name| b.norm(name, norm);
    let before_attention = norm("input_layernorm")?;
    let after_attention = norm("post_attention_layernorm")?;
    let before_mlp = norm("pre_feedforward_layernorm")?;
    let after = [after_attention, norm("post_feedforward_layernorm")?];
    let layer = DecoderLayer::new(attention, mlp, [before_attention, before_mlp]);
    Ok(layer.ending(after.map(BranchEnd::norm)))
}

/// The decoder with its head, whose logits are capped if it is a language model's.
pub(super) fn finish(c: &Config, task: Task, decoder: Decoder, b: &Builder) -> Result<Parts> {
    let softcap = c.positive("final_logit_softcapping")?.map(|cap| cap as f32);
    Ok(match llama::finish(c, task, decoder, b)? {
        (network, Head::Tokens(head)) if task == Task::CausalLm => {
            (network, Head::Tokens(TokenHead { softcap, ..head }))
        }
        parts => parts,
    })
}
