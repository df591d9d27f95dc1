//! The encoder of the BERT family: embeddings and post-norm blocks of attention, bidirectional
//! unless the config makes a decoder of it.
//! Papers: arXiv:1810.04805 (BERT), arXiv:1706.03762. Reference: transformers
//! `models/bert/modeling_bert.py`.

use lowrank_autograd::{
    Result, Value,
    ops::{Activation, AttentionShape, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Linear},
};

use super::{
    encoder_block::EncoderBlock,
    encoder_embeddings::EncoderEmbeddings,
    multi_head::{MultiHeadAttention, divided_attention},
};
use crate::{
    Builder, Cache, Config, Context, Input, Network, Sequences, Task, network::run_blocks,
};

/// Sizes of an encoder.
#[derive(Clone, Debug)]
pub struct EncoderShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the embeddings.
    pub embedding_size: usize,
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

impl EncoderShape {
    /// Reads the fields that the family shares.
    ///
    /// # Errors
    /// When one is wrong, or asks for a decoder or for positions of another kind.
    pub fn from_config(c: &Config) -> crate::Result<Self> {
        match c.switch_or("is_decoder", false)? {
            true => Err(c.not_implemented("is_decoder", "false")),
            false => Self::read(c),
        }
    }

    /// [`EncoderShape::from_config`] of a model that reads from left to right alone where its
    /// config says `is_decoder`, whatever its head.
    ///
    /// # Errors
    /// As [`EncoderShape::from_config`]; when a language model that writes reads in both
    /// directions.
    pub fn either_way(task: Task, c: &Config) -> crate::Result<Self> {
        let causal = c.switch_or("is_decoder", false)?;
        if task == Task::CausalLm && !causal {
            let must_be = "true for `causal-lm`: a model that reads in both directions sees what \
                           it is asked to predict";
            return Err(c.wrong("is_decoder", must_be));
        }
        let shape = Self::read(c)?;
        Ok(Self { attention: AttentionShape { causal, ..shape.attention }, ..shape })
    }

    fn read(c: &Config) -> crate::Result<Self> {
        if c.switch_or("add_cross_attention", false)? {
            return Err(c.not_implemented("add_cross_attention", "false"));
        }
        if !matches!(c.word("position_embedding_type")?, None | Some("absolute")) {
            return Err(c.not_implemented("position_embedding_type", "absolute"));
        }
        let hidden_size = c.size("hidden_size")?;
        Ok(Self {
            hidden_size,
            embedding_size: hidden_size,
            num_hidden_layers: c.size("num_hidden_layers")?,
            attention: divided_attention(c, "hidden_size", "num_attention_heads")?,
            intermediate_size: c.size("intermediate_size")?,
            hidden_act: c.activation("hidden_act", "gelu")?,
            layer_norm_eps: c.epsilon_or("layer_norm_eps", 1e-12)?,
            hidden_dropout_prob: c.probability_or("hidden_dropout_prob", 0.1)?,
            attention_probs_dropout_prob: c.probability_or("attention_probs_dropout_prob", 0.1)?,
        })
    }
}

/// Embeddings and blocks.
#[derive(Clone, Debug)]
pub struct Encoder {
    embeddings: EncoderEmbeddings,
    /// From the embeddings' width to that of the blocks (ELECTRA).
    embeddings_project: Option<Linear>,
    layer: Vec<EncoderBlock<MultiHeadAttention>>,
}

fn attention(s: &EncoderShape, b: &Builder) -> crate::Result<MultiHeadAttention> {
    let square = |name| b.linear(name, s.hidden_size, s.hidden_size, true);
    Ok(MultiHeadAttention {
        query: square("self.query")?,
        key: square("self.key")?,
        value: square("self.value")?,
        output: square("output.dense")?,
        shape: s.attention.clone(),
        dropout: b.dropout("self.dropout", s.attention_probs_dropout_prob),
    })
}

impl Encoder {
    /// The encoder at `b`; names below it are the checkpoint's own.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a size missing in the config.
    pub fn build(
        s: &EncoderShape,
        embeddings: EncoderEmbeddings,
        b: &Builder,
    ) -> crate::Result<Self> {
        let (narrow, hidden) = (s.embedding_size, s.hidden_size);
        let project =
            (narrow != hidden).then(|| b.linear("embeddings_project", narrow, hidden, true));
        let layer = (0..s.num_hidden_layers).map(|i| {
            let b = b.nth("encoder.layer", i);
            EncoderBlock::build(attention(s, &b.at("attention"))?, s, &b)
        });
        Ok(Self {
            embeddings,
            embeddings_project: project.transpose()?,
            layer: layer.collect::<crate::Result<_>>()?,
        })
    }
}

fn block(
    block: &EncoderBlock<MultiHeadAttention>,
    x: &Value,
    sequences: &Sequences,
    cache: Option<&mut [KeyValues]>,
    pass: &Pass,
) -> Result<Value> {
    block.forward(x, pass, |attention, x| attention.forward(x, None, sequences, cache, pass))
}

impl Network for Encoder {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let x = self.embeddings.forward(input, pass)?;
        let x = self.embeddings_project.as_ref().map_or(Ok(x.clone()), |p| p.forward(&x, pass))?;
        run_blocks(&self.layer, x, &input.sequences, context.cache, pass, block)
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.layer.len(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.embeddings.word_embeddings
    }
}
