//! Learned absolute positions: a vector for each place in a sequence.

use std::sync::Arc;

use lowrank_autograd::{Result, Value};
use lowrank_peft::{Pass, layers::Embedding};

use crate::{Builder, Config, Sequences};

/// A table of positions (arXiv:1706.03762, "learned positional embeddings").
#[derive(Clone, Debug)]
pub struct LearnedPositions {
    table: Embedding,
    /// The field of `config.json` that says how many there are.
    field: &'static str,
    rows: usize,
}

impl LearnedPositions {
    /// The table `name` at `b`, of as many rows as the config's `field` says.
    ///
    /// # Errors
    /// When the field or the table is wrong.
    pub fn build(
        name: &str,
        field: &'static str,
        dim: usize,
        c: &Config,
        b: &Builder,
    ) -> crate::Result<Self> {
        let rows = c.size(field)?;
        Ok(Self { table: b.embedding(name, rows, dim)?, field, rows })
    }

    /// The vector of every token's position, `[n, dim]`.
    ///
    /// # Errors
    /// When a position lies beyond the table.
    pub fn forward(&self, sequences: &Sequences, pass: &Pass) -> Result<Value> {
        self.rows(&sequences.positions, pass)
    }

    /// The vectors of these positions, `[n, dim]`.
    ///
    /// # Errors
    /// When one lies beyond the table.
    pub fn rows(&self, positions: &Arc<[u32]>, pass: &Pass) -> Result<Value> {
        let (rows, field) = (self.rows, self.field);
        let last = positions.iter().max();
        if let Some(last) = last.filter(|last| **last as usize >= rows) {
            let what = format!(
                "a sequence of {} tokens is too long for this model: `{field}` in `config.json` \
                 is {rows}; cut it off",
                last + 1
            );
            return Err(candle_core::Error::Msg(what).into());
        }
        self.table.forward(positions, pass)
    }
}
