//! What encoders of the BERT family read: words, positions, segments, and places on a page. Paper:
//! arXiv:1810.04805. Reference: transformers `models/bert/modeling_bert.py`, `BertEmbeddings`.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Linear, Norm},
};

use super::{encoder::EncoderShape, positions::LearnedPositions, word_boxes::WordBoxes};
use crate::{Builder, Config, DropoutSite, Input};

/// `drop(norm(project(words + positions + segments + boxes)))`.
#[derive(Clone, Debug)]
pub struct EncoderEmbeddings {
    /// The words' table.
    pub word_embeddings: Embedding,
    /// The positions' table, where they are added here.
    pub position_embeddings: Option<LearnedPositions>,
    /// How positions count.
    pub position_ids: PositionIds,
    /// The segments' table, where the model tells them apart.
    pub token_type_embeddings: Option<Embedding>,
    /// Tables of boxes (LayoutLM).
    pub boxes: Option<WordBoxes>,
    /// From the embeddings' width to that of the blocks (DeBERTa).
    pub project: Option<Linear>,
    /// After the sum.
    pub norm: Norm,
    /// After the norm.
    pub dropout: DropoutSite,
}

/// Which row of the table a token's position reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionIds {
    /// Its place in the sequence.
    Place,
    /// Tokens other than this one count from the row after it; this one reads its own (fairseq).
    After(u32),
}

impl PositionIds {
    fn of(self, input: &Input) -> Arc<[u32]> {
        let padding_idx = match (self, &input.position_ids) {
            (Self::After(padding_idx), None) => padding_idx,
            _ => return Arc::clone(input.positions()),
        };
        let mut rows = Vec::with_capacity(input.ids.len());
        for span in input.sequences.spans.iter() {
            // A cache holds what was counted before.
            let before = input.sequences.places.get(span.queries.start).copied();
            let mut last = padding_idx + before.unwrap_or_default();
            for &id in input.ids.get(span.queries.clone()).unwrap_or_default() {
                last += u32::from(id != padding_idx);
                rows.push(if id == padding_idx { padding_idx } else { last });
            }
        }
        rows.into()
    }
}

impl EncoderEmbeddings {
    /// BERT's embeddings at `b`: words, positions and segments.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a size missing in the config.
    pub fn build(s: &EncoderShape, c: &Config, b: &Builder) -> crate::Result<Self> {
        Self::counting(PositionIds::Place, s, c, b)
    }

    /// [`EncoderEmbeddings::build`] of a model whose positions count from the padding token on
    /// (fairseq).
    ///
    /// # Errors
    /// As [`EncoderEmbeddings::build`].
    pub fn build_after_padding(s: &EncoderShape, c: &Config, b: &Builder) -> crate::Result<Self> {
        let key = "pad_token_id";
        let padding = c.token_id(key)?.ok_or_else(|| c.wrong(key, "a token id"))?;
        Self::counting(PositionIds::After(padding), s, c, b)
    }

    fn counting(
        position_ids: PositionIds,
        s: &EncoderShape,
        c: &Config,
        b: &Builder,
    ) -> crate::Result<Self> {
        let (dim, words) = (s.embedding_size, c.size("vocab_size")?);
        let word_embeddings =
            b.padded_embedding("word_embeddings", words, dim, c.padding_row()?)?;
        let own_padding = match position_ids {
            PositionIds::Place => None,
            PositionIds::After(padding) => Some(padding),
        };
        let (table, field) = ("position_embeddings", "max_position_embeddings");
        let positions = LearnedPositions::build_padded(own_padding, table, field, dim, c, b)?;
        let types = c.size_or("type_vocab_size", 2)?;
        Ok(Self {
            word_embeddings,
            position_embeddings: Some(positions),
            position_ids,
            token_type_embeddings: Some(b.embedding("token_type_embeddings", types, dim)?),
            boxes: None,
            project: None,
            norm: b.layer_norm("LayerNorm", dim, s.layer_norm_eps)?,
            dropout: b.dropout("dropout", s.hidden_dropout_prob),
        })
    }

    /// `[n, hidden_size]`
    ///
    /// # Errors
    /// When the input doesn't fit the tables.
    pub fn forward(&self, input: &Input, pass: &Pass) -> Result<Value> {
        let mut x = self.word_embeddings.forward(&input.ids, pass)?;
        if let Some(table) = &self.token_type_embeddings {
            let types = input.token_types.as_ref().map(Arc::clone);
            let types = types.unwrap_or_else(|| vec![0; input.ids.len()].into());
            x = ops::add(&x, &table.forward(&types, pass)?)?;
        }
        if let Some(table) = &self.position_embeddings {
            x = ops::add(&x, &table.rows(&self.position_ids.of(input), pass)?)?;
        }
        if let Some(boxes) = &self.boxes {
            x = ops::add(&x, &boxes.forward(input, pass)?)?;
        }
        let x = self.project.as_ref().map_or(Ok(x.clone()), |p| p.forward(&x, pass))?;
        self.dropout.forward(&self.norm.forward(&x, pass)?, pass)
    }
}
