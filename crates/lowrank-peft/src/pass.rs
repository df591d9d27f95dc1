//! What one forward pass is: recorded or not, with dropout or not, with which adapters.

use std::sync::Arc;

use lowrank_autograd::{Dropout, Jitter, Key, RowKeys};

/// The circumstances of a forward pass, handed to every layer. Cheap to clone.
///
/// A model has no modes of its own: whether adapters are on, whether dropout acts and whether
/// gradients are recorded is said for each pass.
#[derive(Clone, Debug)]
pub struct Pass {
    record: bool,
    adapters: Arc<[String]>,
    random: Option<(Key, RowKeys)>,
    checkpointing: bool,
}

impl Pass {
    /// No gradients, no dropout; `adapters` by name, none for the base model alone.
    pub fn inference(adapters: Arc<[String]>) -> Self {
        Self { record: false, adapters, random: None, checkpointing: false }
    }

    /// Gradients for what trains; dropout off until [`Pass::with_dropout`].
    pub fn recording(adapters: Arc<[String]>) -> Self {
        Self { record: true, adapters, random: None, checkpointing: false }
    }

    /// Turns dropout on: `key` stands for seed and step, `rows` for each token's sample and
    /// position.
    pub fn with_dropout(self, key: Key, rows: RowKeys) -> Self {
        Self { random: Some((key, rows)), ..self }
    }

    /// Keeps only the blocks' inputs and runs each block again in the backward pass.
    pub fn with_checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing, ..self }
    }

    /// Whether blocks are to be run again in the backward pass.
    pub fn checkpoints(&self) -> bool {
        self.record && self.checkpointing
    }

    /// The same pass for another set of rows: those of `rows` that `picked` names.
    pub fn for_rows(&self, picked: &[usize]) -> Self {
        let random = self.random.as_ref().map(|(key, rows)| {
            let row = |&i: &usize| rows.get(i).copied().unwrap_or_default();
            (*key, picked.iter().map(row).collect())
        });
        Self { random, ..self.clone() }
    }

    /// The same pass for the rows of a table that all sequences read, as of relative positions.
    pub fn for_table(&self, rows: usize) -> Self {
        let random = self.random.as_ref().map(|(key, _)| (*key, (0..rows as u64).collect()));
        Self { random, ..self.clone() }
    }

    /// The same pass for `count` parts of each of these rows, as the patches of a text's image are.
    pub fn for_parts(&self, rows: &[usize], count: usize) -> Self {
        let random = self.random.as_ref().map(|(key, keys)| {
            let of = |row: &usize| keys.get(*row).copied().unwrap_or_default();
            // The stride is odd and has no pattern in its bits: no two parts' keys meet by design.
            let part = |key: u64| {
                (1..=count as u64).map(move |i| key ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            };
            (*key, rows.iter().map(of).flat_map(part).collect())
        });
        Self { random, ..self.clone() }
    }

    /// Whether operations on trainable parameters are recorded.
    pub fn records(&self) -> bool {
        self.record
    }

    /// The active adapters, in the order in which their terms are added.
    pub fn adapters(&self) -> &[String] {
        &self.adapters
    }

    /// The mask of a place, `site` being a hash of its name; `None` when nothing is dropped.
    pub fn dropout(&self, p: f32, site: u64) -> Option<Dropout> {
        let (key, rows) = self.random.as_ref().filter(|_| p > 0.0)?;
        Some(Dropout { p, key: key.with(site), rows: Arc::clone(rows) })
    }

    /// The noise of a place, as [`Pass::dropout`].
    pub fn jitter(&self, amount: f32, site: u64) -> Option<Jitter> {
        let Dropout { p: amount, key, rows } = self.dropout(amount, site)?;
        Some(Jitter { amount, key, rows })
    }
}
