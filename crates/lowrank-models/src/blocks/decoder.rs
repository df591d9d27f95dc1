//! The decoder of the Llama family: pre-norm blocks of rotary attention and an MLP.
//! Papers: arXiv:2302.13971 (Llama), arXiv:2305.13245 (grouped queries), arXiv:2310.06825
//! (Mistral). Reference: transformers `models/llama/modeling_llama.py`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Result, Value,
    ops::{self, Angles, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{attention::Attention, mlp::Mlp, rotary::Rotary};
use crate::{Builder, Cache, Context, Input, Network, NormShape, Sequences, network::run_blocks};

/// Embedding, blocks and final norm.
#[derive(Clone, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    embedding_scale: Option<f32>,
    layers: Vec<DecoderLayer>,
    norm: Norm,
    rotary: Rotary,
}

/// A block: `x + attn(norm(x))`, then the same around an MLP; either may be of any kind.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    input_layernorm: Norm,
    self_attn: Arc<dyn Attention>,
    post_attention_layernorm: Norm,
    mlp: Arc<dyn Mlp>,
}

impl DecoderLayer {
    /// The block of an attention and an MLP with the norms before them.
    pub fn new(
        self_attn: impl Attention + 'static,
        mlp: impl Mlp + 'static,
        [input_layernorm, post_attention_layernorm]: [Norm; 2],
    ) -> Self {
        let (self_attn, mlp) = (Arc::new(self_attn), Arc::new(mlp));
        Self { input_layernorm, self_attn, post_attention_layernorm, mlp }
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

/// What a [`Decoder`] is made of, apart from its blocks.
#[derive(Clone, Debug)]
pub struct DecoderShape {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Factor of what is read from it.
    pub embedding_scale: Option<f32>,
    /// Blocks.
    pub layers: usize,
    /// The final norm.
    pub norm: NormShape,
    /// Positions.
    pub rotary: Rotary,
}

impl Decoder {
    /// `embed_tokens`, `layers` and `norm` at `b`. `layer` builds a block at its place, given its
    /// number.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(
        shape: &DecoderShape,
        b: &Builder,
        layer: impl Fn(usize, &Builder) -> crate::Result<DecoderLayer>,
    ) -> crate::Result<Self> {
        let embed_tokens = b.embedding("embed_tokens", shape.vocab_size, shape.norm.dim)?;
        let layers = (0..shape.layers).map(|i| layer(i, &b.nth("layers", i)));
        // transformers holds the factor in the table's dtype.
        let dtype = embed_tokens.weight().weight().dtype();
        let rounded = |scale: f32| -> crate::Result<f32> {
            let scale = Tensor::new(scale, &Device::Cpu)?.to_dtype(dtype)?;
            Ok(scale.to_dtype(DType::F32)?.to_scalar()?)
        };
        Ok(Self {
            embed_tokens,
            embedding_scale: shape.embedding_scale.map(rounded).transpose()?,
            layers: layers.collect::<crate::Result<_>>()?,
            norm: b.norm("norm", shape.norm)?,
            rotary: shape.rotary.clone(),
        })
    }
}

impl Network for Decoder {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let angles = self.rotary.angles(&input.sequences)?;
        let x = self.embed_tokens.forward(&input.ids, pass)?;
        let x = self.embedding_scale.map_or(Ok(x.clone()), |scale| ops::scale(&x, scale))?;
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
