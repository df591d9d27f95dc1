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
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gemma",
    class: "Gemma",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    paper: "arXiv:2403.08295",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    if c.switch_or("use_bidirectional_attention", false)? {
        return Err(c.not_implemented("use_bidirectional_attention", "false"));
    }
    let bias = c.switch_or("attention_bias", false)?;
    let attention = SelfAttentionShape {
        head_dim: c.size_or("head_dim", 256)?,
        qkv_bias: bias,
        out_bias: bias,
        ..llama::attention(c)?
    };
    let mlp = MlpShape { activation: activation(c)?, ..llama::mlp(c)? };
    let shape = llama::decoder_shape(c, attention.head_dim)?;
    let shape = DecoderShape {
        embedding_scale: Some((mlp.hidden_size as f32).sqrt()),
        norm: NormShape { kind: NormKind::RmsAroundOne, ..shape.norm },
        ..shape
    };
    let layer = |_, b: &Builder| llama::layer(&attention, &mlp, shape.norm, b);
    llama::finish(c, task, Decoder::build(&shape, &b.base(), layer)?, b)
}

/// Early configs say `gelu` of models that were trained with the tanh approximation.
fn activation(c: &Config) -> Result<Activation> {
    Ok(match c.activation("hidden_act", "gelu_pytorch_tanh")? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    })
}
