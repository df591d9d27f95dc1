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

use super::{attention::Attention, mlp::Mlp, rotary::Rotary, router::Balance};
use crate::{
    Builder, Cache, Context, DropoutSite, Input, Network, NormShape, Sequences, network::run_blocks,
};

/// Embedding, blocks and final norm.
#[derive(Clone, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    embedding_scale: Option<f32>,
    layers: Vec<DecoderLayer>,
    norm: Norm,
    /// All positions that a layer turns by; the decoder's own come first.
    rotaries: Vec<Rotary>,
    cache_limit: Option<usize>,
    balance: Option<Balance>,
}

/// A block: `x + attn(norm(x))`, then the same around an MLP; either may be of any kind.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    input_norm: Norm,
    self_attn: Arc<dyn Attention>,
    attention_end: BranchEnd,
    /// Where there is none, the MLP reads what the attention reads.
    mlp_norm: Option<Norm>,
    mlp: Arc<dyn Mlp>,
    mlp_end: BranchEnd,
    rotary: Option<Rotary>,
    /// Which of the decoder's rotaries it turns by.
    turns_by: usize,
}

/// What becomes of an attention's or an MLP's result before it is added to the residual stream.
#[derive(Clone, Debug, Default)]
pub struct BranchEnd {
    /// A norm (Gemma 2).
    pub norm: Option<Norm>,
    /// Then dropout.
    pub dropout: Option<DropoutSite>,
}

impl BranchEnd {
    /// A norm and nothing else.
    pub fn norm(norm: Norm) -> Self {
        Self { norm: Some(norm), dropout: None }
    }

    /// Dropout and nothing else.
    pub fn dropout(dropout: DropoutSite) -> Self {
        Self { norm: None, dropout: Some(dropout) }
    }

    fn forward(&self, y: Value, pass: &Pass) -> Result<Value> {
        let y = self.norm.as_ref().map_or(Ok(y.clone()), |norm| norm.forward(&y, pass))?;
        self.dropout.map_or(Ok(y.clone()), |dropout| dropout.forward(&y, pass))
    }
}

impl DecoderLayer {
    /// The block of an attention and an MLP with the norms before them.
    pub fn new(
        self_attn: impl Attention + 'static,
        mlp: impl Mlp + 'static,
        [input_norm, mlp_norm]: [Norm; 2],
    ) -> Self {
        Self { mlp_norm: Some(mlp_norm), ..Self::parallel(self_attn, mlp, input_norm) }
    }

    /// The block of an attention and an MLP that read the same: `x + attn(norm(x)) + mlp(norm(x))`.
    pub fn parallel(
        self_attn: impl Attention + 'static,
        mlp: impl Mlp + 'static,
        input_norm: Norm,
    ) -> Self {
        Self {
            input_norm,
            self_attn: Arc::new(self_attn),
            attention_end: BranchEnd::default(),
            mlp_norm: None,
            mlp: Arc::new(mlp),
            mlp_end: BranchEnd::default(),
            rotary: None,
            turns_by: 0,
        }
    }

    /// With what ends the branches of attention and MLP.
    #[must_use]
    pub fn ending(self, [attention_end, mlp_end]: [BranchEnd; 2]) -> Self {
        Self { attention_end, mlp_end, ..self }
    }

    /// With positions of its own in place of the decoder's.
    #[must_use]
    pub fn turning_by(self, rotary: Rotary) -> Self {
        Self { rotary: Some(rotary), ..self }
    }

    fn forward(
        &self,
        x: &Value,
        angles: &[Angles],
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<(Value, Option<Value>)> {
        let normed = self.input_norm.forward(x, pass)?;
        let angles = &angles[self.turns_by];
        let attended = self.self_attn.forward(&normed, angles, sequences, cache, pass)?;
        let x = ops::add(x, &self.attention_end.forward(attended, pass)?)?;
        let normed = self.mlp_norm.as_ref().map_or(Ok(normed), |norm| norm.forward(&x, pass))?;
        let (y, logits) = self.mlp.forward_routed(&normed, pass)?;
        Ok((ops::add(&x, &self.mlp_end.forward(y, pass)?)?, logits))
    }

    /// Runs the block on the first `width` columns of `x`. The columns behind them are the logits
    /// of routers so far, to which its own are joined.
    fn forward_joined(
        &self,
        x: &Value,
        width: usize,
        angles: &[Angles],
        sequences: &Sequences,
        pass: &Pass,
    ) -> Result<Value> {
        let all = x.dims().last().copied().unwrap_or_default();
        let before = (all > width).then(|| ops::columns(x, width..all)).transpose()?;
        let x = ops::columns(x, 0..width)?;
        let (y, logits) = self.forward(&x, angles, sequences, None, pass)?;
        ops::join_columns(&[Some(y), before, logits].into_iter().flatten().collect::<Vec<_>>())
    }
}

/// Gives each layer its place among the rotaries of all; `first` are those of the decoder.
fn collect_rotaries(first: &Rotary, layers: &mut [DecoderLayer]) -> Vec<Rotary> {
    let mut all = vec![first.clone()];
    for layer in layers {
        let Some(own) = layer.rotary.take() else { continue };
        layer.turns_by = all.iter().position(|known| *known == own).unwrap_or(all.len());
        if layer.turns_by == all.len() {
            all.push(own);
        }
    }
    all
}

/// What a [`Decoder`] is made of, apart from its blocks.
#[derive(Clone, Debug)]
pub struct DecoderShape {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The row that doesn't train.
    pub padding: Option<u32>,
    /// Factor of what is read from it.
    pub embedding_scale: Option<f32>,
    /// Blocks.
    pub layers: usize,
    /// The final norm.
    pub norm: NormShape,
    /// Positions.
    pub rotary: Rotary,
}

/// Names of a decoder's parts.
#[derive(Clone, Copy, Debug)]
pub struct DecoderNames {
    /// The embedding.
    pub embedding: &'static str,
    /// The list of blocks.
    pub layers: &'static str,
    /// The final norm.
    pub norm: &'static str,
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
        let names = DecoderNames { embedding: "embed_tokens", layers: "layers", norm: "norm" };
        Self::named(names, shape, b, layer)
    }

    /// [`Decoder::build`] under names of the model's own.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn named(
        names: DecoderNames,
        shape: &DecoderShape,
        b: &Builder,
        layer: impl Fn(usize, &Builder) -> crate::Result<DecoderLayer>,
    ) -> crate::Result<Self> {
        let (rows, dim) = (shape.vocab_size, shape.norm.dim);
        let embed_tokens = b.padded_embedding(names.embedding, rows, dim, shape.padding)?;
        let layers = (0..shape.layers).map(|i| layer(i, &b.nth(names.layers, i)));
        let mut layers = layers.collect::<crate::Result<Vec<_>>>()?;
        // transformers holds the factor in the table's dtype.
        let dtype = embed_tokens.weight().weight().dtype();
        let rounded = |scale: f32| -> crate::Result<f32> {
            let scale = Tensor::new(scale, &Device::Cpu)?.to_dtype(dtype)?;
            Ok(scale.to_dtype(DType::F32)?.to_scalar()?)
        };
        Ok(Self {
            embed_tokens,
            embedding_scale: shape.embedding_scale.map(rounded).transpose()?,
            rotaries: collect_rotaries(&shape.rotary, &mut layers),
            layers,
            norm: b.norm(names.norm, shape.norm)?,
            cache_limit: None,
            balance: None,
        })
    }

    /// With a limit as in [`Network::cache_limit`].
    #[must_use]
    pub fn with_cache_limit(self, limit: usize) -> Self {
        Self { cache_limit: Some(limit), ..self }
    }

    /// With what is added to the loss of tokens for the balance of experts.
    #[must_use]
    pub fn with_balance(self, balance: Option<Balance>) -> Self {
        Self { balance, ..self }
    }

    /// What the first block reads, and the angles that blocks turn by.
    fn embed(&self, input: &Input, pass: &Pass) -> Result<(Value, Arc<[Angles]>)> {
        let angles = self.rotaries.iter().map(|rotary| rotary.angles(&input.sequences));
        let angles = angles.collect::<Result<_>>()?;
        let x = self.embed_tokens.forward(&input.ids, pass)?;
        let x = self.embedding_scale.map_or(Ok(x.clone()), |scale| ops::scale(&x, scale))?;
        Ok((x, angles))
    }
}

impl Network for Decoder {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let (x, angles) = self.embed(input, pass)?;
        let (sequences, cache) = (&input.sequences, context.cache);
        let x =
            run_blocks(&self.layers, x, sequences, cache, pass, move |layer, x, s, cache, p| {
                Ok(layer.forward(x, &angles, s, cache, p)?.0)
            })?;
        self.norm.forward(&x, pass)
    }

    fn has_penalty(&self) -> bool {
        self.balance.is_some()
    }

    fn forward_with_penalty(&self, input: &Input, pass: &Pass) -> Result<(Value, Option<Value>)> {
        let Some(balance) = self.balance else {
            return Ok((self.forward(input, Context::default(), pass)?, None));
        };
        let (x, angles) = self.embed(input, pass)?;
        let width = x.dims().last().copied().unwrap_or_default();
        // A block that is run again has one result: logits travel beside the hidden states.
        let x =
            run_blocks(&self.layers, x, &input.sequences, None, pass, move |layer, x, s, _, p| {
                layer.forward_joined(x, width, &angles, s, p)
            })?;
        let all = x.dims().last().copied().unwrap_or_default();
        let penalty = match all > width {
            true => Some(balance.loss(&ops::columns(&x, width..all)?)?),
            false => None,
        };
        Ok((self.norm.forward(&ops::columns(&x, 0..width)?, pass)?, penalty))
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.layers.len(), sequences)
    }

    fn cache_limit(&self) -> Option<usize> {
        self.cache_limit
    }

    fn table(&self) -> &Embedding {
        &self.embed_tokens
    }
}
