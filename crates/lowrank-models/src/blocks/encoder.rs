//! The encoder of the BERT family: embeddings and post-norm blocks of bidirectional attention.
//! Papers: arXiv:1810.04805 (BERT), arXiv:1706.03762. Reference: transformers
//! `models/bert/modeling_bert.py`.

use std::sync::Arc;

use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation, AttentionShape, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{
    feed_forward::FeedForward, multi_head::MultiHeadAttention, positions::LearnedPositions,
};
use crate::{
    Builder, Config, Context, DropoutSite, Input, Network, Sequences, network::run_blocks,
};

/// What distinguishes one member of the family from another, and its sizes.
#[derive(Clone, Debug)]
pub struct EncoderShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of the blocks.
    pub attention: AttentionShape,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Their activation.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Dropout on embeddings and on what is added to the residual stream.
    pub hidden_dropout_prob: f32,
    /// Dropout on attention probabilities.
    pub attention_probs_dropout_prob: f32,
}

/// Embeddings and blocks.
#[derive(Clone, Debug)]
pub struct Encoder {
    embeddings: Embeddings,
    layer: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: LearnedPositions,
    token_type_embeddings: Embedding,
    layer_norm: Norm,
    dropout: DropoutSite,
}

impl Embeddings {
    fn build(s: &EncoderShape, c: &Config, b: &Builder) -> crate::Result<Self> {
        let (hidden, field) = (s.hidden_size, "max_position_embeddings");
        Ok(Self {
            word_embeddings: b.embedding("word_embeddings", c.size("vocab_size")?, hidden)?,
            position_embeddings: LearnedPositions::build(
                "position_embeddings",
                field,
                hidden,
                c,
                b,
            )?,
            token_type_embeddings: b.embedding(
                "token_type_embeddings",
                c.size_or("type_vocab_size", 2)?,
                hidden,
            )?,
            layer_norm: b.layer_norm("LayerNorm", hidden, s.layer_norm_eps)?,
            dropout: b.dropout("dropout", s.hidden_dropout_prob),
        })
    }

    fn forward(&self, input: &Input, pass: &Pass) -> Result<Value> {
        let types = input.token_types.as_ref().map(Arc::clone);
        let types = types.unwrap_or_else(|| vec![0; input.ids.len()].into());
        let words = self.word_embeddings.forward(&input.ids, pass)?;
        let x = ops::add(&words, &self.token_type_embeddings.forward(&types, pass)?)?;
        let x = ops::add(&x, &self.position_embeddings.forward(&input.sequences, pass)?)?;
        self.dropout.forward(&self.layer_norm.forward(&x, pass)?, pass)
    }
}

/// `norm(x + drop(f(x)))`, around attention and around the feed-forward block.
#[derive(Clone, Debug)]
struct Residual {
    dropout: DropoutSite,
    layer_norm: Norm,
}

impl Residual {
    fn build(s: &EncoderShape, b: &Builder) -> crate::Result<Self> {
        Ok(Self {
            dropout: b.dropout("dropout", s.hidden_dropout_prob),
            layer_norm: b.layer_norm("LayerNorm", s.hidden_size, s.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Value, y: &Value, pass: &Pass) -> Result<Value> {
        self.layer_norm.forward(&ops::add(x, &self.dropout.forward(y, pass)?)?, pass)
    }
}

#[derive(Clone, Debug)]
struct Layer {
    attention: MultiHeadAttention,
    attention_output: Residual,
    feed_forward: FeedForward,
    output: Residual,
}

impl Layer {
    fn build(s: &EncoderShape, b: &Builder) -> crate::Result<Self> {
        let (hidden, inner) = (s.hidden_size, s.intermediate_size);
        let square = |name| b.linear(name, hidden, hidden, true);
        Ok(Self {
            attention: MultiHeadAttention {
                query: square("attention.self.query")?,
                key: square("attention.self.key")?,
                value: square("attention.self.value")?,
                output: square("attention.output.dense")?,
                shape: s.attention.clone(),
                dropout: b.dropout("attention.self.dropout", s.attention_probs_dropout_prob),
            },
            attention_output: Residual::build(s, &b.at("attention.output"))?,
            feed_forward: FeedForward::plain(
                b.linear("intermediate.dense", hidden, inner, true)?,
                s.hidden_act,
                b.linear("output.dense", inner, hidden, true)?,
            ),
            output: Residual::build(s, &b.at("output"))?,
        })
    }

    fn forward(
        &self,
        x: &Value,
        sequences: &Sequences,
        _: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let mixed = self.attention.forward(x, None, sequences, None, pass)?;
        let x = self.attention_output.forward(x, &mixed, pass)?;
        self.output.forward(&x, &self.feed_forward.forward(&x, pass)?, pass)
    }
}

impl Encoder {
    /// The encoder at `b`; names below it are the checkpoint's own.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a size missing in the config.
    pub fn build(s: &EncoderShape, c: &Config, b: &Builder) -> crate::Result<Self> {
        let embeddings = Embeddings::build(s, c, &b.at("embeddings"))?;
        let layers = 0..s.num_hidden_layers;
        let layer = layers.map(|i| Layer::build(s, &b.nth("encoder.layer", i)));
        Ok(Self { embeddings, layer: layer.collect::<crate::Result<_>>()? })
    }
}

impl Network for Encoder {
    fn forward(&self, input: &Input, _: Context<'_>, pass: &Pass) -> Result<Value> {
        let x = self.embeddings.forward(input, pass)?;
        run_blocks(&self.layer, x, &input.sequences, None, pass, Layer::forward)
    }

    fn table(&self) -> &Embedding {
        &self.embeddings.word_embeddings
    }
}
