//! Where tokens stand: learned vectors of the places in a sequence, or what attention is told.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{Result, Value, ops::Angles};
use lowrank_peft::{Pass, layers::Embedding};

use super::{
    alibi::{Alibi, RoundedAlibi},
    rotary::Rotary,
};
use crate::{Builder, Config, Sequences};

/// How a decoder knows where its tokens stand.
#[derive(Clone, Debug)]
pub enum Positions {
    /// By vectors that are added to the embedding.
    Learned(LearnedPositions),
    /// By the angles at which queries and keys are turned.
    Rotary(Rotary),
    /// By what is added to the scores.
    Alibi(Alibi),
    /// By what the place of a key adds to the scores.
    RoundedAlibi(RoundedAlibi),
}

/// What attention is told of where tokens stand.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Angles of every row.
    pub angles: Option<Angles>,
    /// What is added to the scores, as in [`lowrank_autograd::ops::attention`].
    pub bias: Option<Value>,
    /// What is added to the scores of those that look at a row, `[n, heads]`.
    pub key_bias: Option<Tensor>,
}

impl Positions {
    /// What attention is told of these sequences.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn places(&self, sequences: &Sequences) -> Result<Places> {
        Ok(match self {
            Self::Learned(_) => Places::default(),
            Self::Rotary(rotary) => {
                Places { angles: Some(rotary.angles(sequences)?), ..Places::default() }
            }
            Self::Alibi(alibi) => {
                Places { bias: Some(alibi.bias(sequences)?), ..Places::default() }
            }
            Self::RoundedAlibi(alibi) => {
                Places { key_bias: Some(alibi.of_keys(sequences)?), ..Places::default() }
            }
        })
    }
}

/// A table of positions (arXiv:1706.03762, "learned positional embeddings").
#[derive(Clone, Debug)]
pub struct LearnedPositions {
    table: Embedding,
    /// The field of `config.json` that says how many there are.
    field: String,
    rows: usize,
    /// Rows of the table before that of the first position.
    offset: u32,
    /// Whether padding doesn't move positions.
    counts_tokens: bool,
}

impl LearnedPositions {
    /// The table `name` at `b`, of as many rows as the config's `field` says.
    ///
    /// # Errors
    /// When the field or the table is wrong.
    pub fn build(
        name: &str,
        field: &str,
        dim: usize,
        c: &Config,
        b: &Builder,
    ) -> crate::Result<Self> {
        Self::build_after(0, name, field, dim, c, b)
    }

    /// [`LearnedPositions::build`] of a table with `offset` rows more before the first position's
    /// (BART).
    ///
    /// # Errors
    /// When the field or the table is wrong.
    pub fn build_after(
        offset: u32,
        name: &str,
        field: &str,
        dim: usize,
        c: &Config,
        b: &Builder,
    ) -> crate::Result<Self> {
        let table = b.embedding(name, c.size(field)? + offset as usize, dim)?;
        Self::over(table, offset, field, c)
    }

    /// [`LearnedPositions::build`] of a table whose row `padding` doesn't train (RoBERTa).
    ///
    /// # Errors
    /// When the field or the table is wrong.
    pub fn build_padded(
        padding: Option<u32>,
        name: &str,
        field: &str,
        dim: usize,
        c: &Config,
        b: &Builder,
    ) -> crate::Result<Self> {
        let table = b.padded_embedding(name, c.size(field)?, dim, padding)?;
        Self::over(table, 0, field, c)
    }

    fn over(table: Embedding, offset: u32, field: &str, c: &Config) -> crate::Result<Self> {
        let (rows, field) = (c.size(field)?, c.name_of(field).to_owned());
        Ok(Self { table, field, rows, offset, counts_tokens: false })
    }

    /// [`LearnedPositions::build_after`] of positions that padding doesn't move (OPT).
    ///
    /// # Errors
    /// When the field or the table is wrong.
    pub fn counting_tokens(
        name: &str,
        field: &str,
        (dim, offset): (usize, u32),
        c: &Config,
        b: &Builder,
    ) -> crate::Result<Self> {
        let counted = Self::build_after(offset, name, field, dim, c, b)?;
        Ok(Self { counts_tokens: true, ..counted })
    }

    /// The vector of every token's position, `[n, dim]`.
    ///
    /// # Errors
    /// When a position lies beyond the table.
    pub fn forward(&self, sequences: &Sequences, pass: &Pass) -> Result<Value> {
        match self.counts_tokens {
            true => self.rows(&sequences.places, pass),
            false => self.rows(&sequences.positions, pass),
        }
    }

    /// The vectors of these positions, `[n, dim]`.
    ///
    /// # Errors
    /// When one lies beyond the table.
    pub fn rows(&self, positions: &Arc<[u32]>, pass: &Pass) -> Result<Value> {
        let (rows, field) = (self.rows, &self.field);
        let last = positions.iter().max();
        if let Some(last) = last.filter(|last| **last as usize >= rows) {
            let what = format!(
                "a sequence of {} tokens is too long for this model: `{field}` in `config.json` \
                 is {rows}; cut it off",
                last + 1
            );
            return Err(candle_core::Error::Msg(what).into());
        }
        match self.offset {
            0 => self.table.forward(positions, pass),
            offset => self.table.forward(&positions.iter().map(|p| p + offset).collect(), pass),
        }
    }
}
