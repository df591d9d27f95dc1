//! The encoders and heads of the DeBERTa family: blocks of disentangled attention, in version 2
//! with a convolution beside the first. Papers: arXiv:2006.03654, arXiv:2111.09543. Reference:
//! transformers `models/deberta_v2/modeling_deberta_v2.py`.

use candle_core::{Device, Tensor};
use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{Pass, layers::Embedding};

use super::{
    convolution::Convolution,
    disentangled_attention::{DisentangledAttention, Reach, RelativeEmbeddings},
    encoder::EncoderShape,
    encoder_block::EncoderBlock,
    encoder_embeddings::{EncoderEmbeddings, PositionIds},
    encoder_heads::{bert_predictions, encoder_head, transform},
    positions::LearnedPositions,
    post_norm::PostNorm,
};
use crate::{
    Builder, Config, Context, Head, Input, Network, Sequences, Task,
    network::run_blocks,
    task_heads::{Pick, SequenceHead, TokenHead, Transform},
};

/// Sizes of a [`DisentangledEncoder`].
#[derive(Clone, Debug)]
pub struct DisentangledShape {
    /// What it shares with BERT.
    pub encoder: EncoderShape,
    /// How distances fall onto vectors, where there are any.
    pub relative: Option<Reach>,
    /// Whether these go through a norm.
    pub norm_relative: bool,
    /// Width of the convolution beside the first block.
    pub conv_kernel_size: Option<usize>,
}

impl DisentangledShape {
    /// Reads what both versions have; `buckets` says whether the config's `position_buckets`
    /// counts.
    ///
    /// # Errors
    /// When a field is wrong.
    pub fn from_config(c: &Config, buckets: bool) -> crate::Result<Self> {
        let shared = EncoderShape::from_config(c)?;
        let encoder = EncoderShape {
            embedding_size: c.size_or("embedding_size", shared.hidden_size)?,
            layer_norm_eps: c.epsilon_or("layer_norm_eps", 1e-7)?,
            ..shared
        };
        let is_relative = c.switch_or("relative_attention", false)?;
        let relative = is_relative.then(|| Reach::from_config(c, buckets)).transpose()?;
        Ok(Self { encoder, relative, norm_relative: false, conv_kernel_size: None })
    }
}

/// Embeddings, blocks and vectors of distances.
#[derive(Clone, Debug)]
pub struct DisentangledEncoder {
    embeddings: EncoderEmbeddings,
    layer: Vec<Block>,
    relative: Option<RelativeEmbeddings>,
}

#[derive(Clone, Debug)]
struct Block {
    block: EncoderBlock<DisentangledAttention>,
    /// Of the block's input, added to its output.
    conv: Option<(Convolution, PostNorm)>,
}

fn embeddings(s: &EncoderShape, c: &Config, b: &Builder) -> crate::Result<EncoderEmbeddings> {
    let (dim, hidden) = (s.embedding_size, s.hidden_size);
    let (table, field) = ("position_embeddings", "max_position_embeddings");
    let (words, padding) = (c.size("vocab_size")?, c.padding_row()?);
    let word_embeddings = b.padded_embedding("word_embeddings", words, dim, padding)?;
    let positions = || LearnedPositions::build(table, field, dim, c, b);
    let types = || b.embedding("token_type_embeddings", c.size("type_vocab_size")?, dim);
    let has_types = c.number_or("type_vocab_size", 0.0)? > 0.0;
    let has_positions = c.switch_or("position_biased_input", true)?;
    Ok(EncoderEmbeddings {
        word_embeddings,
        position_embeddings: has_positions.then(positions).transpose()?,
        position_ids: PositionIds::Place,
        token_type_embeddings: has_types.then(types).transpose()?,
        boxes: None,
        project: (dim != hidden).then(|| b.linear("embed_proj", dim, hidden, false)).transpose()?,
        norm: b.layer_norm("LayerNorm", hidden, s.layer_norm_eps)?,
        dropout: b.dropout("dropout", s.hidden_dropout_prob),
    })
}

impl DisentangledEncoder {
    /// The encoder at `b`. `attention` builds a block's at its place.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a size missing in the config.
    pub fn build(
        s: &DisentangledShape,
        c: &Config,
        b: &Builder,
        attention: impl Fn(&Builder) -> crate::Result<DisentangledAttention>,
    ) -> crate::Result<Self> {
        let (own, hidden) = (&s.encoder, s.encoder.hidden_size);
        let embeddings = embeddings(own, c, &b.at("embeddings"))?;
        let b = b.at("encoder");
        let layer = (0..own.num_hidden_layers).map(|i| {
            let b = b.nth("layer", i);
            let block = EncoderBlock::build(attention(&b.at("attention"))?, own, &b)?;
            Ok(Block { block, conv: None })
        });
        let mut layer: Vec<Block> = layer.collect::<crate::Result<_>>()?;
        let table = |reach: Reach| b.embedding("rel_embeddings", 2 * reach.span, hidden);
        let table = s.relative.map(table).transpose()?;
        // transformers' class has it even if there are no distances.
        let norm = || b.layer_norm("LayerNorm", hidden, own.layer_norm_eps);
        let norm = s.norm_relative.then(norm).transpose()?;
        let relative = table.zip(s.relative);
        let relative = relative.map(|(table, reach)| RelativeEmbeddings { table, norm, reach });
        if let (Some(width), Some(first)) = (s.conv_kernel_size, layer.first_mut()) {
            let b = b.at("conv");
            let conv = Convolution::build(hidden, width, c, &b.at("conv"))?;
            let dropout = b.dropout("dropout", own.hidden_dropout_prob);
            let norm = b.layer_norm("LayerNorm", hidden, own.layer_norm_eps)?;
            first.conv = Some((conv, PostNorm { dropout, norm }));
        }
        Ok(Self { embeddings, layer, relative })
    }
}

impl Block {
    fn forward(
        &self,
        x: &Value,
        relative: Option<&RelativeEmbeddings>,
        sequences: &Sequences,
        pass: &Pass,
    ) -> Result<Value> {
        let attend = |attention: &DisentangledAttention, x: &Value| {
            attention.forward(x, relative, sequences, pass)
        };
        let y = self.block.forward(x, pass, attend)?;
        let Some((conv, around)) = &self.conv else { return Ok(y) };
        let beside = without_padding(conv.forward(x, sequences, pass)?, sequences)?;
        let beside = ops::activation(&around.dropout.forward(&beside, pass)?, conv.activation)?;
        without_padding(around.norm.forward(&ops::add(&y, &beside)?, pass)?, sequences)
    }
}

impl Network for DisentangledEncoder {
    fn forward(&self, input: &Input, _: Context<'_>, pass: &Pass) -> Result<Value> {
        let x = without_padding(self.embeddings.forward(input, pass)?, &input.sequences)?;
        let relative = self.relative.clone();
        run_blocks(&self.layer, x, &input.sequences, None, pass, move |block, x, s, _, pass| {
            block.forward(x, relative.as_ref(), s, pass)
        })
    }

    fn table(&self) -> &Embedding {
        &self.embeddings.word_embeddings
    }
}

/// Zeros in the rows of padding, which only comparisons with transformers have.
fn without_padding(x: Value, sequences: &Sequences) -> Result<Value> {
    if sequences.spans.iter().all(|span| span.keys == span.queries) {
        return Ok(x);
    }
    let width = x.dims().last().copied().unwrap_or_default();
    let real = sequences.spans.iter().flat_map(|span| {
        let keys = span.keys.clone();
        span.queries.clone().map(move |row| f32::from(u8::from(keys.contains(&row))))
    });
    let mask: Vec<f32> = real.flat_map(|real| std::iter::repeat_n(real, width)).collect();
    let mask = Tensor::from_vec(mask, x.dims(), &Device::Cpu)?;
    ops::mul(&x, &Value::constant(mask))
}

/// The head for `task` at the model's root `b`.
///
/// # Errors
/// When a tensor is misshapen or a config field wrong.
pub fn disentangled_head(
    task: Task,
    c: &Config,
    s: &EncoderShape,
    table: &Embedding,
    b: &Builder,
) -> crate::Result<Head> {
    let masked = || match c.switch_or("legacy", true)? {
        true => bert_predictions(c, s, table, b),
        false => language_head(c, s, table, &b.at("lm_predictions.lm_head")),
    };
    let sequence = || context_pooler(c, s, b);
    encoder_head(task, c, (s.hidden_size, s.hidden_dropout_prob), b, masked, sequence)
}

/// The head that version 3 was trained with: logits are products with the words' table itself.
fn language_head(
    c: &Config,
    s: &EncoderShape,
    table: &Embedding,
    b: &Builder,
) -> crate::Result<TokenHead> {
    if s.embedding_size != s.hidden_size {
        return Err(c.wrong("embedding_size", "`hidden_size`, unless `legacy` is true"));
    }
    let transform = transform(s, s.hidden_act, ["dense", "LayerNorm"], b)?;
    let offsets = b.head_parameter("bias", &[c.size("vocab_size")?])?;
    // transformers calls the dense layer the output embedding.
    let linear = b.table_as_linear("dense", table);
    Ok(TokenHead { transform: Some(transform), offsets: Some(offsets), ..TokenHead::of(linear) })
}

/// A classifier of the first token.
fn context_pooler(c: &Config, s: &EncoderShape, b: &Builder) -> crate::Result<SequenceHead> {
    let hidden = s.hidden_size;
    if c.size_or("pooler_hidden_size", hidden)? != hidden {
        return Err(c.wrong("pooler_hidden_size", format!("`hidden_size`, which is {hidden}")));
    }
    let dropout = c.probability_or("cls_dropout", f64::from(s.hidden_dropout_prob))?;
    Ok(SequenceHead {
        pick: Pick::First,
        input_dropout: Some(b.dropout("pooler.dropout", c.probability_or("pooler_dropout", 0.0)?)),
        pooler: Some(Transform {
            dense: b.head_linear("pooler.dense", hidden, hidden, true)?,
            activation: c.activation("pooler_hidden_act", "gelu")?,
            norm: None,
        }),
        dropout: Some(b.dropout("dropout", dropout)),
        linear: b.head_linear("classifier", hidden, c.num_labels()?, true)?,
    })
}
