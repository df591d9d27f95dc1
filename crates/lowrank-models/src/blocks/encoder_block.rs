//! A post-norm block of the BERT family: some attention, then feed-forward layers. Paper:
//! arXiv:1810.04805. Reference: transformers `models/bert/modeling_bert.py`, `BertLayer`.

use lowrank_autograd::{Result, Value};
use lowrank_peft::Pass;

use super::{encoder::EncoderShape, feed_forward::FeedForward, post_norm::PostNorm};
use crate::Builder;

/// A block around attention of the kind `A`.
#[derive(Clone, Debug)]
pub struct EncoderBlock<A> {
    attention: A,
    attention_output: PostNorm,
    feed_forward: FeedForward,
    output: PostNorm,
}

fn post_norm(s: &EncoderShape, b: &Builder) -> crate::Result<PostNorm> {
    Ok(PostNorm {
        dropout: b.dropout("dropout", s.hidden_dropout_prob),
        norm: b.layer_norm("LayerNorm", s.hidden_size, s.layer_norm_eps)?,
    })
}

impl<A> EncoderBlock<A> {
    /// The block at `b`, whose attention was built before: files name what is in a block in the
    /// order of its computation.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(attention: A, s: &EncoderShape, b: &Builder) -> crate::Result<Self> {
        let (hidden, inner) = (s.hidden_size, s.intermediate_size);
        Ok(Self {
            attention,
            attention_output: post_norm(s, &b.at("attention.output"))?,
            feed_forward: FeedForward::plain(
                b.linear("intermediate.dense", hidden, inner, true)?,
                s.hidden_act,
                b.linear("output.dense", inner, hidden, true)?,
            ),
            output: post_norm(s, &b.at("output"))?,
        })
    }

    /// `x` `[n, hidden_size]` → the same; `attend` runs the attention, its output layer included.
    ///
    /// # Errors
    /// Whatever `attend` returns; when `x` doesn't fit.
    pub fn forward(
        &self,
        x: &Value,
        pass: &Pass,
        attend: impl FnOnce(&A, &Value) -> Result<Value>,
    ) -> Result<Value> {
        let x = self.attention_output.around(x, pass, |x| attend(&self.attention, x))?;
        self.output.around(&x, pass, |x| self.feed_forward.forward(x, pass))
    }
}
