//! Norms of query and key heads (arXiv:2302.05442), between their projection and their turning.

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{Pass, layers::Norm};

/// What normalizes the heads of queries or of keys.
#[derive(Clone, Debug)]
pub enum HeadNorm {
    /// One norm over the width of a head, for all of them.
    Shared(Norm),
    /// A norm for each head.
    Each(Vec<Norm>),
}

impl HeadNorm {
    /// `x` `[n, heads·head_dim]` → the same.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let norms = match self {
            Self::Shared(norm) => return norm.forward_heads(x, pass),
            Self::Each(norms) => norms,
        };
        let mut start = 0;
        let heads = norms.iter().map(|norm| {
            let from = start;
            start += norm.weight().weight().elem_count();
            norm.forward(&ops::columns(x, from..start)?, pass)
        });
        ops::join_columns(&heads.collect::<Result<Vec<_>>>()?)
    }
}
