//! GLM-4 as transformers has it: Llama whose heads turn by half, in neighbouring pairs, with biases
//! on queries, keys and values, and gate and input of the MLP in one layer.
//! Paper: arXiv:2406.12793. Reference: transformers `models/glm/modeling_glm.py`.

use lowrank_autograd::ops::RotaryStyle;

use super::{Architecture, Parts, llama};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::{Decoder, DecoderLayer, DecoderShape},
        mlp::{GatedMlp, MlpShape},
        rotary::Rotary,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "glm",
    class: "Glm",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    pad_token_id: Some(151_329),
    paper: "arXiv:2406.12793",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    with_layers(c, task, b, |blocks, b| blocks.layer(b))
}

/// What blocks are made of.
pub(super) struct Blocks {
    attention: SelfAttentionShape,
    mlp: MlpShape,
    pub(super) shape: DecoderShape,
}

impl Blocks {
    /// A block at `b`.
    pub(super) fn layer(&self, b: &Builder) -> Result<DecoderLayer> {
        let attention = SelfAttention::build(&self.attention, &b.at("self_attn"))?;
        let mlp = GatedMlp::fused(&self.mlp, ["gate_up_proj", "down_proj"], &b.at("mlp"))?;
        llama::layer_of(attention, mlp, self.shape.norm, b)
    }
}

/// The model of blocks that `layer` builds.
pub(super) fn with_layers(
    c: &Config,
    task: Task,
    b: &Builder,
    layer: impl Fn(&Blocks, &Builder) -> Result<DecoderLayer>,
) -> Result<Parts> {
    let c = &c.with_defaults([
        ("num_key_value_heads", 2.into()),
        ("head_dim", 128.into()),
        ("partial_rotary_factor", 0.5.into()),
        ("rms_norm_eps", 1.562_5e-7.into()),
    ]);
    let attention = SelfAttentionShape {
        qkv_bias: c.switch_or("attention_bias", true)?,
        rotary: RotaryStyle::Pairs,
        ..llama::attention(c)?
    };
    let shape = llama::decoder_shape(c, Rotary::from_config(c, attention.head_dim)?)?;
    let blocks = Blocks { attention, mlp: llama::mlp(c)?, shape };
    let decoder = Decoder::build(&blocks.shape, &b.base(), |_, b| layer(&blocks, b))?;
    llama::finish(c, task, decoder, b)
}
