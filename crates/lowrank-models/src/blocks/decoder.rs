//! The decoder of the Llama family: pre-norm blocks of rotary attention and a gated MLP.
//! Papers: arXiv:2302.13971 (Llama), arXiv:2305.13245 (grouped queries), arXiv:2310.06825
//! (Mistral). Reference: transformers `models/llama/modeling_llama.py`.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Angles, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{
    attention::{SelfAttention, SelfAttentionShape},
    mlp::{GatedMlp, MlpShape},
    rotary::Rotary,
};
use crate::{Builder, Cache, Context, Input, Network, Sequences, network::run_blocks};

/// What distinguishes one member of the family from another.
#[derive(Clone, Debug)]
pub struct DecoderShape {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// One entry a block.
    pub layers: Vec<SelfAttentionShape>,
    /// The MLPs.
    pub mlp: MlpShape,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Positions.
    pub rotary: Rotary,
}

/// Embedding, blocks and final norm.
#[derive(Clone, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    rotary: Rotary,
}

#[derive(Clone, Debug)]
struct Layer {
    input_layernorm: Norm,
    self_attn: SelfAttention,
    post_attention_layernorm: Norm,
    mlp: GatedMlp,
}

impl Layer {
    fn build(
        shape: &DecoderShape,
        attention: &SelfAttentionShape,
        b: &Builder,
    ) -> crate::Result<Self> {
        let norm = |name| b.rms_norm(name, attention.hidden_size, shape.rms_norm_eps);
        Ok(Self {
            self_attn: SelfAttention::build(attention, &b.at("self_attn"))?,
            mlp: GatedMlp::build(&shape.mlp, &b.at("mlp"))?,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        })
    }

    fn forward(
        &self,
        x: &Value,
        angles: &Angles,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let normed = self.input_layernorm.forward(x, pass)?;
        let x = ops::add(x, &self.self_attn.forward(&normed, angles, sequences, cache, pass)?)?;
        let normed = self.post_attention_layernorm.forward(&x, pass)?;
        ops::add(&x, &self.mlp.forward(&normed, pass)?)
    }
}

impl Decoder {
    /// The decoder at `b`; names below it are the checkpoint's own.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(shape: &DecoderShape, b: &Builder) -> crate::Result<Self> {
        let hidden = shape.mlp.hidden_size;
        let embed_tokens = b.embedding("embed_tokens", shape.vocab_size, hidden)?;
        let layer = |(i, attention)| Layer::build(shape, attention, &b.nth("layers", i));
        Ok(Self {
            embed_tokens,
            layers: shape.layers.iter().enumerate().map(layer).collect::<crate::Result<_>>()?,
            norm: b.rms_norm("norm", hidden, shape.rms_norm_eps)?,
            rotary: shape.rotary.clone(),
        })
    }

    /// The token embedding, for a tied head.
    pub fn embed_tokens(&self) -> &Embedding {
        &self.embed_tokens
    }
}

impl Network for Decoder {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let angles = self.rotary.angles(&input.sequences)?;
        let x = self.embed_tokens.forward(&input.ids, pass)?;
        let (sequences, cache) = (&input.sequences, context.cache);
        let x =
            run_blocks(&self.layers, x, sequences, cache, pass, move |layer, x, s, cache, p| {
                layer.forward(x, &angles, s, cache, p)
            })?;
        self.norm.forward(&x, pass)
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.layers.len(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.embed_tokens
    }
}
