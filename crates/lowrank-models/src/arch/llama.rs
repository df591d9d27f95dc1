//! Llama: pre-norm blocks, rotary positions, grouped-query attention, gated MLP.
//! Paper: arXiv:2302.13971. Reference: transformers `models/llama/modeling_llama.py`.

use std::sync::Arc;

use lowrank_autograd::ops::RotaryStyle;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, NormShape, Result, Task,
    blocks::{
        attention::{Attention, SelfAttention, SelfAttentionShape},
        decoder::{Decoder, DecoderLayer, DecoderShape},
        mlp::{GatedMlp, Mlp, MlpShape},
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
    let mlp = MlpShape { bias: c.switch_or("mlp_bias", false)?, ..mlp(c)? };
    let shape = decoder_shape(c, Rotary::whole(c, attention.head_dim)?)?;
    let decoder = Decoder::build(&shape, &b.base(), |_, b| layer(&attention, &mlp, shape.norm, b))?;
    finish(c, task, decoder, b)
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
        rotary: RotaryStyle::Halves,
        scale: None,
        softcap: None,
        window: None,
        dropout: c.probability_or("attention_dropout", 0.0)?,
    })
}

/// The MLP that the config's sizes describe: no biases.
pub(super) fn mlp(c: &Config) -> Result<MlpShape> {
    Ok(MlpShape {
        hidden_size: c.size("hidden_size")?,
        intermediate_size: c.size("intermediate_size")?,
        bias: false,
        activation: c.activation("hidden_act", "silu")?,
    })
}

/// The decoder that the config's sizes describe.
pub(super) fn decoder_shape(c: &Config, rotary: Rotary) -> Result<DecoderShape> {
    Ok(DecoderShape {
        vocab_size: c.size("vocab_size")?,
        padding: c.padding_row()?,
        embedding_scale: None,
        layers: c.size("num_hidden_layers")?,
        norm: NormShape::rms(c.size("hidden_size")?, c.epsilon_or("rms_norm_eps", 1e-6)?),
        rotary,
    })
}

/// A block at `b`.
pub(super) fn layer(
    attention: &SelfAttentionShape,
    mlp: &MlpShape,
    norm: NormShape,
    b: &Builder,
) -> Result<DecoderLayer> {
    let attention = SelfAttention::build(attention, &b.at("self_attn"))?;
    layer_of(attention, GatedMlp::build(mlp, &b.at("mlp"))?, norm, b)
}

/// A block at `b` of an attention and an MLP that lie there.
pub(super) fn layer_of(
    attention: impl Attention + 'static,
    mlp: impl Mlp + 'static,
    norm: NormShape,
    b: &Builder,
) -> Result<DecoderLayer> {
    let norms = [b.norm("input_layernorm", norm)?, b.norm("post_attention_layernorm", norm)?];
    Ok(DecoderLayer::new(attention, mlp, norms))
}

/// Blocks of Llama's kind with the attention of each layer.
pub(super) fn with_attention(
    c: &Config,
    task: Task,
    b: &Builder,
    attention: impl Fn(usize) -> SelfAttentionShape,
) -> Result<Parts> {
    let (shape, mlp) = (decoder_shape(c, Rotary::whole(c, attention(0).head_dim)?)?, mlp(c)?);
    let decoder =
        Decoder::build(&shape, &b.base(), |i, b| layer(&attention(i), &mlp, shape.norm, b))?;
    finish(c, task, decoder, b)
}

/// The decoder with its head.
pub(super) fn finish(c: &Config, task: Task, decoder: Decoder, b: &Builder) -> Result<Parts> {
    let head = decoder_head(task, c, &decoder, DecoderHeads::GENERIC, b)?;
    Ok((Arc::new(decoder), head))
}
