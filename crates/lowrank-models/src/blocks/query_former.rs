//! The Q-Former: learned queries that look at an image, so that few vectors stand for it. Paper:
//! arXiv:2301.12597. Reference: transformers `models/blip_2/modeling_blip_2.py`,
//! `Blip2QFormerModel`.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{
    Pass,
    layers::{Bare, Norm},
};

use super::{
    encoder_decoder::{Beside, StackBlock, run_stack},
    feed_forward::FeedForward,
    multi_head::{MultiHeadAttention, divided_attention},
    post_norm::PostNorm,
};
use crate::{Builder, Config, Context, DropoutSite, Encoded, Sequences};

/// The queries, and what they go through.
#[derive(Clone, Debug)]
pub struct QueryFormer {
    query_tokens: Bare,
    queries: usize,
    layernorm: Norm,
    dropout: DropoutSite,
    layer: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    attention: (MultiHeadAttention, PostNorm),
    crossattention: Option<(MultiHeadAttention, PostNorm)>,
    feed_forward: FeedForward,
    around_feed_forward: PostNorm,
}

fn post_norm(c: &Config, b: &Builder) -> crate::Result<PostNorm> {
    let (hidden, eps) = (c.size("hidden_size")?, c.epsilon_or("layer_norm_eps", 1e-12)?);
    let dropout = b.dropout("dropout", c.probability_or("hidden_dropout_prob", 0.1)?);
    Ok(PostNorm { norm: b.layer_norm("LayerNorm", hidden, eps)?, dropout })
}

/// Attention to vectors of width `from`.
fn attention(
    c: &Config,
    from: usize,
    b: &Builder,
) -> crate::Result<(MultiHeadAttention, PostNorm)> {
    let (hidden, own) = (c.size("hidden_size")?, b.at("attention"));
    let dropout = c.probability_or("attention_probs_dropout_prob", 0.1)?;
    let attention = MultiHeadAttention {
        query: own.linear("query", hidden, hidden, true)?,
        key: own.linear("key", from, hidden, true)?,
        value: own.linear("value", from, hidden, true)?,
        output: b.linear("output.dense", hidden, hidden, true)?,
        shape: divided_attention(c, "hidden_size", "num_attention_heads")?,
        dropout: own.dropout("dropout", dropout),
    };
    Ok((attention, post_norm(c, &b.at("output"))?))
}

impl Block {
    fn build(c: &Config, seen: usize, index: usize, b: &Builder) -> crate::Result<Self> {
        let (hidden, inner) = (c.size("hidden_size")?, c.size("intermediate_size")?);
        let looks = index.is_multiple_of(c.size_or("cross_attention_frequency", 2)?);
        let across = || attention(c, seen, &b.at("crossattention"));
        Ok(Self {
            attention: attention(c, hidden, &b.at("attention"))?,
            crossattention: looks.then(across).transpose()?,
            feed_forward: FeedForward::plain(
                b.linear("intermediate_query.dense", hidden, inner, true)?,
                c.activation("hidden_act", "gelu")?,
                b.linear("output_query.dense", inner, hidden, true)?,
            ),
            around_feed_forward: post_norm(c, &b.at("output_query"))?,
        })
    }
}

impl StackBlock for Block {
    fn forward(&self, x: &Value, b: Beside<'_>, s: &Sequences, pass: &Pass) -> Result<Value> {
        let (attention, around) = &self.attention;
        let mut x = around.around(x, pass, |x| attention.forward(x, None, s, None, pass))?;
        if let (Some((attention, around)), Some(seen)) = (&self.crossattention, b.source) {
            x = around.around(&x, pass, |x| attention.across(x, seen, s, None, pass))?;
        }
        self.around_feed_forward.around(&x, pass, |x| self.feed_forward.forward(x, pass))
    }
}

impl QueryFormer {
    /// So many queries at the model's root `b`, that look at vectors of width `seen`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or the config asks for queries with a text.
    pub fn build(c: &Config, queries: usize, seen: usize, b: &Builder) -> crate::Result<Self> {
        if c.switch_or("use_qformer_text_input", false)? {
            return Err(c.not_implemented("use_qformer_text_input", "false"));
        }
        let (hidden, eps) = (c.size("hidden_size")?, c.epsilon_or("layer_norm_eps", 1e-12)?);
        let query_tokens = b.parameter("query_tokens", &[1, queries, hidden])?;
        let b = b.at("qformer");
        let layernorm = b.layer_norm("layernorm", hidden, eps)?;
        let layer = (0..c.size("num_hidden_layers")?)
            .map(|i| Block::build(c, seen, i, &b.nth("encoder.layer", i)));
        Ok(Self {
            query_tokens,
            queries,
            layernorm,
            dropout: b.dropout("dropout", c.probability_or("hidden_dropout_prob", 0.1)?),
            layer: layer.collect::<crate::Result<_>>()?,
        })
    }

    /// How many vectors stand for an image.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// What stands for each of the images that `seen` shows, `[images·queries, hidden_size]`, and
    /// the pass of these rows; `rows` are those of `pass` on which each one's dropout depends.
    ///
    /// # Errors
    /// When the operands don't fit.
    pub fn forward(&self, seen: &Encoded, rows: &[usize], pass: &Pass) -> Result<(Value, Pass)> {
        let (images, pass) = (rows.len(), pass.for_parts(rows, self.queries));
        let places: Arc<[usize]> = (0..images * self.queries).map(|i| i % self.queries).collect();
        let queries = ops::select_rows(&self.query_tokens.rows(&pass)?, &places)?;
        let x = self.dropout.forward(&self.layernorm.forward(&queries, &pass)?, &pass)?;
        let sequences = Sequences::packed(&vec![self.queries; images]);
        let context = Context { encoded: Some(seen), cache: None };
        Ok((run_stack(&self.layer, x, None, &sequences, context, &pass)?, pass))
    }
}
