//! Llama: pre-norm blocks, rotary positions, grouped-query attention, gated MLP.
//! Paper: arXiv:2302.13971. Reference: transformers `models/llama/modeling_llama.py`.

use std::sync::Arc;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        attention::SelfAttentionShape,
        decoder::{Decoder, DecoderShape},
        mlp::MlpShape,
        rotary::Rotary,
    },
    task_heads::{DecoderHeads, decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "llama",
    class: "Llama",
    prefixes: &["model", "transformer"],
    question_prefix: Some("transformer"),
    paper: "arXiv:2302.13971",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let bias = c.switch_or("attention_bias", false)?;
    let attention = SelfAttentionShape { qkv_bias: bias, out_bias: bias, ..attention(c)? };
    let mlp_bias = c.switch_or("mlp_bias", false)?;
    let shape = decoder_shape(c, |_| attention.clone(), mlp_bias)?;
    finish(c, task, &shape, b)
}

/// The attention that the config's sizes describe: no biases, norms or window.
pub(super) fn attention(c: &Config) -> Result<SelfAttentionShape> {
    let hidden_size = c.size("hidden_size")?;
    let heads = c.size("num_attention_heads")?;
    let kv_heads = c.size_or("num_key_value_heads", heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(c.wrong("num_key_value_heads", format!("a divisor of {heads} heads")));
    }
    let head_dim = match c.size_or_none("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => return Err(c.wrong("hidden_size", format!("a multiple of {heads} heads"))),
    };
    Ok(SelfAttentionShape {
        hidden_size,
        heads,
        kv_heads,
        head_dim,
        qkv_bias: false,
        out_bias: false,
        qk_norm: None,
        window: None,
        dropout: c.probability_or("attention_dropout", 0.0)?,
    })
}

/// The whole decoder, with the attention of each layer.
pub(super) fn decoder_shape(
    c: &Config,
    layer: impl Fn(usize) -> SelfAttentionShape,
    mlp_bias: bool,
) -> Result<DecoderShape> {
    let layers: Vec<_> = (0..c.size("num_hidden_layers")?).map(layer).collect();
    let head_dim = layers.first().map_or(0, |l| l.head_dim);
    Ok(DecoderShape {
        vocab_size: c.size("vocab_size")?,
        layers,
        mlp: MlpShape {
            hidden_size: c.size("hidden_size")?,
            intermediate_size: c.size("intermediate_size")?,
            bias: mlp_bias,
            activation: c.activation("hidden_act", "silu")?,
        },
        rms_norm_eps: c.epsilon_or("rms_norm_eps", 1e-6)?,
        rotary: Rotary::from_config(c, head_dim)?,
    })
}

/// Builds the decoder and its head.
pub(super) fn finish(c: &Config, task: Task, shape: &DecoderShape, b: &Builder) -> Result<Parts> {
    let decoder = Arc::new(Decoder::build(shape, &b.base())?);
    let names = DecoderHeads { token_classifier: "score", token_dropout: ("hidden_dropout", 0.1) };
    let head = decoder_head(task, c, decoder.as_ref(), names, b)?;
    Ok((decoder, head))
}
