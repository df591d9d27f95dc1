//! Gemma: Llama with scaled embeddings, wide heads and norms whose factors are kept around 1.
//! Paper: arXiv:2403.08295. Reference: transformers `models/gemma/modeling_gemma.py`.

use lowrank_autograd::ops::Activation;
use lowrank_peft::layers::NormKind;

use super::{Architecture, Parts, llama};
use crate::{
    Builder, Config, NormShape, Result, Task,
    blocks::{
        attention::SelfAttentionShape,
        decoder::{Decoder, DecoderShape},
        mlp::MlpShape,
        rotary::Rotary,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gemma",
    class: "Gemma",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    pad_token_id: Some(0),
    paper: "arXiv:2403.08295",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (attention, shape) = (attention(c)?, decoder_shape(c)?);
    let mlp = MlpShape { activation: activation(c)?, ..llama::mlp(c)? };
    let layer = |_, b: &Builder| llama::layer(&attention, &mlp, shape.norm, b);
    llama::finish(c, task, Decoder::build(&shape, &b.base(), layer)?, b)
}

fn head_dim(c: &Config) -> Result<usize> {
    c.size_or("head_dim", 256)
}

/// Llama's attention with wide heads and biases everywhere or nowhere.
pub(super) fn attention(c: &Config) -> Result<SelfAttentionShape> {
    if c.switch_or("use_bidirectional_attention", false)? {
        return Err(c.not_implemented("use_bidirectional_attention", "false"));
    }
    let (head_dim, bias) = (head_dim(c)?, c.switch_or("attention_bias", false)?);
    Ok(SelfAttentionShape { head_dim, qkv_bias: bias, out_bias: bias, ..llama::attention(c)? })
}

/// Llama's decoder with scaled embeddings and norms around 1.
pub(super) fn decoder_shape(c: &Config) -> Result<DecoderShape> {
    let shape = llama::decoder_shape(c, Rotary::whole(c, head_dim(c)?)?)?;
    Ok(DecoderShape {
        embedding_scale: Some((shape.norm.dim as f32).sqrt()),
        norm: NormShape { kind: NormKind::RmsAroundOne, ..shape.norm },
        ..shape
    })
}

/// Early configs say `gelu`, under that name alone, of models that were trained with the tanh
/// approximation.
fn activation(c: &Config) -> Result<Activation> {
    match c.word("hidden_act")? {
        Some("gelu") => Ok(Activation::GeluTanh),
        _ => c.activation("hidden_act", "gelu_pytorch_tanh"),
    }
}
