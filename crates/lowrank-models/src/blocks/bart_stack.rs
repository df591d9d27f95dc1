//! The stacks of BART, encoder and decoder: embeddings with learned positions under a norm, then
//! post-norm blocks. Paper: arXiv:1910.13461. Reference: transformers
//! `models/bart/modeling_bart.py`.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation, AttentionShape},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{
    encoder_decoder::{Beside, Stack, StackBlock, run_stack},
    feed_forward::FeedForward,
    multi_head::{MultiHeadAttention, divided_attention},
    positions::LearnedPositions,
    post_norm::PostNorm,
};
use crate::{Builder, Config, Context, DropoutSite, Input, Sequences};

/// Epsilon of every norm.
const LAYER_NORM_EPS: f64 = 1e-5;
/// Rows of the table of positions that no place reads: fairseq counts from the padding token on.
const POSITIONS_SKIPPED: u32 = 2;

/// Sizes of a [`BartStack`].
#[derive(Clone, Debug)]
pub struct BartStackShape {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width inside the feed-forward layers.
    pub ffn_dim: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Heads, and whether they look ahead.
    pub attention: AttentionShape,
    /// Whether the blocks read an encoder's output.
    pub is_decoder: bool,
    /// Activation of the feed-forward layers.
    pub activation_function: Activation,
    /// Factor of the embedding.
    pub embed_scale: Option<f32>,
    /// Dropout on embeddings and on what is added to the residual stream.
    pub dropout: f32,
    /// Dropout on attention probabilities.
    pub attention_dropout: f32,
    /// Dropout inside the feed-forward layers.
    pub activation_dropout: f32,
}

impl BartStackShape {
    /// Reads the fields of either half.
    ///
    /// # Errors
    /// When one is wrong, or asks for blocks that are left out at random.
    pub fn from_config(c: &Config, is_decoder: bool) -> crate::Result<Self> {
        let [layers, heads, ffn_dim, layerdrop] = match is_decoder {
            true => [
                "decoder_layers",
                "decoder_attention_heads",
                "decoder_ffn_dim",
                "decoder_layerdrop",
            ],
            false => {
                ["num_hidden_layers", "num_attention_heads", "encoder_ffn_dim", "encoder_layerdrop"]
            }
        };
        if c.number_or(layerdrop, 0.0)? != 0.0 {
            return Err(c.not_implemented(layerdrop, "0"));
        }
        let d_model = c.size("hidden_size")?;
        let attention = divided_attention(c, "hidden_size", heads)?;
        let scaled = c.switch_or("scale_embedding", false)?;
        Ok(Self {
            d_model,
            ffn_dim: c.size(ffn_dim)?,
            layers: c.size(layers)?,
            attention: AttentionShape { causal: is_decoder, ..attention },
            is_decoder,
            activation_function: c.activation("activation_function", "gelu")?,
            embed_scale: scaled.then(|| (d_model as f32).sqrt()),
            dropout: c.probability_or("dropout", 0.1)?,
            attention_dropout: c.probability_or("attention_dropout", 0.0)?,
            activation_dropout: c.probability_or("activation_dropout", 0.0)?,
        })
    }
}

/// Embeddings and blocks.
#[derive(Clone, Debug)]
pub struct BartStack {
    embed_tokens: Embedding,
    embed_scale: Option<f32>,
    embed_positions: LearnedPositions,
    layers: Vec<Block>,
    layernorm_embedding: Norm,
    dropout: DropoutSite,
}

#[derive(Clone, Debug)]
struct Block {
    self_attn: MultiHeadAttention,
    around_self_attn: PostNorm,
    encoder_attn: Option<(MultiHeadAttention, PostNorm)>,
    feed_forward: FeedForward,
    around_feed_forward: PostNorm,
}

fn attention(s: &BartStackShape, causal: bool, b: &Builder) -> crate::Result<MultiHeadAttention> {
    let square = |name| b.linear(name, s.d_model, s.d_model, true);
    Ok(MultiHeadAttention {
        key: square("k_proj")?,
        value: square("v_proj")?,
        query: square("q_proj")?,
        output: square("out_proj")?,
        shape: AttentionShape { causal, ..s.attention.clone() },
        dropout: b.dropout("dropout", s.attention_dropout),
    })
}

impl Block {
    fn build(s: &BartStackShape, b: &Builder) -> crate::Result<Self> {
        let post_norm = |name: &str| -> crate::Result<PostNorm> {
            let dropout = b.at(name).dropout("dropout", s.dropout);
            Ok(PostNorm { dropout, norm: b.layer_norm(name, s.d_model, LAYER_NORM_EPS)? })
        };
        let across = || -> crate::Result<_> {
            let attn = attention(s, false, &b.at("encoder_attn"))?;
            Ok((attn, post_norm("encoder_attn_layer_norm")?))
        };
        Ok(Self {
            self_attn: attention(s, s.is_decoder, &b.at("self_attn"))?,
            around_self_attn: post_norm("self_attn_layer_norm")?,
            encoder_attn: s.is_decoder.then(across).transpose()?,
            feed_forward: FeedForward {
                dropout: Some(b.dropout("fc2.dropout", s.activation_dropout)),
                ..FeedForward::plain(
                    b.linear("fc1", s.d_model, s.ffn_dim, true)?,
                    s.activation_function,
                    b.linear("fc2", s.ffn_dim, s.d_model, true)?,
                )
            },
            around_feed_forward: post_norm("final_layer_norm")?,
        })
    }
}

impl StackBlock for Block {
    fn forward(&self, x: &Value, b: Beside<'_>, s: &Sequences, pass: &Pass) -> Result<Value> {
        let (own, cross) = b.cache.map(|cache| (cache.own, cache.cross)).unzip();
        let mut x = self
            .around_self_attn
            .around(x, pass, |x| self.self_attn.forward(x, None, s, own, pass))?;
        if let (Some((attn, residual)), Some(source)) = (&self.encoder_attn, b.source) {
            x = residual.around(&x, pass, |x| attn.across(x, source, s, cross, pass))?;
        }
        self.around_feed_forward.around(&x, pass, |x| self.feed_forward.forward(x, pass))
    }
}

impl BartStack {
    /// The stack at `b` behind its embedding.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(
        s: &BartStackShape,
        c: &Config,
        embed_tokens: Embedding,
        b: &Builder,
    ) -> crate::Result<Self> {
        let (table, field) = ("embed_positions", "max_position_embeddings");
        let embed_positions =
            LearnedPositions::build_after(POSITIONS_SKIPPED, table, field, s.d_model, c, b)?;
        let layers = (0..s.layers).map(|i| Block::build(s, &b.nth("layers", i)));
        Ok(Self {
            embed_tokens,
            embed_scale: s.embed_scale,
            embed_positions,
            layers: layers.collect::<crate::Result<_>>()?,
            layernorm_embedding: b.layer_norm("layernorm_embedding", s.d_model, LAYER_NORM_EPS)?,
            dropout: b.dropout("dropout", s.dropout),
        })
    }
}

impl Stack for BartStack {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let words = input.embed(&self.embed_tokens, pass)?;
        let words = self.embed_scale.map_or(Ok(words.clone()), |s| ops::scale(&words, s))?;
        let x = ops::add(&words, &self.embed_positions.rows(input.positions(), pass)?)?;
        let x = self.dropout.forward(&self.layernorm_embedding.forward(&x, pass)?, pass)?;
        run_stack(&self.layers, x, None, &input.sequences, context, pass)
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }
}
