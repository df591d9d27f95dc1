//! The stacks of the T5 family, encoder and decoder: pre-norm blocks of unscaled attention with a
//! bias by distance, of attention to the source, and of a feed-forward layer.
//! Paper: arXiv:1910.10683. Reference: transformers `models/t5/modeling_t5.py`, `T5Stack`.

use lowrank_autograd::{
    Result, Value,
    ops::{Activation, AttentionShape},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{
    encoder_decoder::{self, Beside, StackBlock, run_stack},
    feed_forward::FeedForward,
    multi_head::MultiHeadAttention,
    pre_norm::PreNorm,
    relative_position::{Buckets, RelativePositions},
};
use crate::{Builder, Context, DropoutSite, Input, Sequences};

/// Sizes of a [`Stack`].
#[derive(Clone, Debug)]
pub struct StackShape {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width inside the feed-forward layers.
    pub d_ff: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads, and whether they look ahead.
    pub attention: AttentionShape,
    /// How distances fall into buckets.
    pub buckets: Buckets,
    /// Whether the blocks read an encoder's output.
    pub is_decoder: bool,
    /// Activation of the feed-forward layers.
    pub dense_act_fn: Activation,
    /// Whether these are gated.
    pub is_gated_act: bool,
    /// Dropout, everywhere.
    pub dropout_rate: f32,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
}

/// Embedding, blocks and final norm.
#[derive(Clone, Debug)]
pub struct Stack {
    embed_tokens: Embedding,
    embedding_dropout: DropoutSite,
    block: Vec<Block>,
    final_layer_norm: Norm,
    dropout: DropoutSite,
}

#[derive(Clone, Debug)]
struct Block {
    self_attention: MultiHeadAttention,
    /// In block 0 alone; the blocks after it share its result.
    positions: Option<RelativePositions>,
    around_self_attention: PreNorm,
    cross_attention: Option<(MultiHeadAttention, PreNorm)>,
    feed_forward: FeedForward,
    around_feed_forward: PreNorm,
}

fn pre_norm(s: &StackShape, b: &Builder) -> crate::Result<PreNorm> {
    let norm = b.rms_norm("layer_norm", s.d_model, s.layer_norm_epsilon)?;
    Ok(PreNorm { norm, dropout: b.dropout("dropout", s.dropout_rate) })
}

fn attention(s: &StackShape, causal: bool, b: &Builder) -> crate::Result<MultiHeadAttention> {
    let inner = s.attention.heads * s.attention.head_dim;
    let into = |name| b.linear(name, s.d_model, inner, false);
    Ok(MultiHeadAttention {
        query: into("q")?,
        key: into("k")?,
        value: into("v")?,
        output: b.linear("o", inner, s.d_model, false)?,
        shape: AttentionShape { causal, scale: 1.0, ..s.attention.clone() },
        dropout: b.dropout("dropout", s.dropout_rate),
    })
}

fn feed_forward(s: &StackShape, b: &Builder) -> crate::Result<FeedForward> {
    let into = |name| b.linear(name, s.d_model, s.d_ff, false);
    let (gate, up) = match s.is_gated_act {
        true => (Some(into("wi_0")?), into("wi_1")?),
        false => (None, into("wi")?),
    };
    let down = b.linear("wo", s.d_ff, s.d_model, false)?;
    let dropout = Some(b.dropout("dropout", s.dropout_rate));
    Ok(FeedForward { gate, up, activation: s.dense_act_fn, dropout, down })
}

impl Block {
    fn build(s: &StackShape, index: usize, b: &Builder) -> crate::Result<Self> {
        let sub = |i| b.nth("layer", i);
        let own = sub(0).at("SelfAttention");
        let self_attention = attention(s, s.is_decoder, &own)?;
        let positions =
            (index == 0).then(|| RelativePositions::build(s.buckets, s.attention.heads, &own));
        let positions = positions.transpose()?;
        let around_self_attention = pre_norm(s, &sub(0))?;
        let cross_attention = match s.is_decoder {
            true => {
                Some((attention(s, false, &sub(1).at("EncDecAttention"))?, pre_norm(s, &sub(1))?))
            }
            false => None,
        };
        let last = sub(1 + usize::from(s.is_decoder));
        Ok(Self {
            self_attention,
            positions,
            around_self_attention,
            cross_attention,
            feed_forward: feed_forward(s, &last.at("DenseReluDense"))?,
            around_feed_forward: pre_norm(s, &last)?,
        })
    }
}

impl StackBlock for Block {
    fn forward(&self, x: &Value, b: Beside<'_>, s: &Sequences, pass: &Pass) -> Result<Value> {
        let (own, cross) = b.cache.map(|cache| (cache.own, cache.cross)).unzip();
        let mut x = self
            .around_self_attention
            .around(x, pass, |x| self.self_attention.forward(x, b.bias, s, own, pass))?;
        if let (Some((attention, residual)), Some(source)) = (&self.cross_attention, b.source) {
            x = residual.around(&x, pass, |x| attention.across(x, source, s, cross, pass))?;
        }
        self.around_feed_forward.around(&x, pass, |x| self.feed_forward.forward(x, pass))
    }
}

impl Stack {
    /// The stack at `b`, whose embedding reads the model's `shared` one.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(s: &StackShape, shared: &Embedding, b: &Builder) -> crate::Result<Self> {
        let embed_tokens = b.tied_embedding("embed_tokens", shared)?;
        let block = (0..s.num_layers).map(|i| Block::build(s, i, &b.nth("block", i)));
        Ok(Self {
            embed_tokens,
            embedding_dropout: b.dropout("embed_tokens.dropout", s.dropout_rate),
            block: block.collect::<crate::Result<_>>()?,
            final_layer_norm: b.rms_norm("final_layer_norm", s.d_model, s.layer_norm_epsilon)?,
            dropout: b.dropout("dropout", s.dropout_rate),
        })
    }
}

impl encoder_decoder::Stack for Stack {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let sequences = &input.sequences;
        let embedded = input.embed(&self.embed_tokens, pass)?;
        let x = self.embedding_dropout.forward(&embedded, pass)?;
        let positions = self.block.iter().find_map(|block| block.positions.as_ref());
        let bias = positions.map(|p| p.forward(sequences, pass)).transpose()?;
        let x = run_stack(&self.block, x, bias.as_ref(), sequences, context, pass)?;
        self.dropout.forward(&self.final_layer_norm.forward(&x, pass)?, pass)
    }

    fn layers(&self) -> usize {
        self.block.len()
    }
}
