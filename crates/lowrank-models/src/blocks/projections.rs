//! The layers that make queries, keys and values of a block's input. Paper: arXiv:1706.03762.

use lowrank_autograd::{
    Result, Value,
    ops::{self, AttentionShape},
};
use lowrank_peft::{Pass, layers::Linear};

/// The layers that make queries, keys and values.
#[derive(Clone, Debug)]
pub enum Projections {
    /// One each, in this order.
    Separate([Linear; 3]),
    /// One for all.
    Fused(Fused),
}

impl Projections {
    /// Queries, keys and values of `x` `[n, hidden_size]`, in the widths of `shape`.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, shape: &AttentionShape, pass: &Pass) -> Result<[Value; 3]> {
        match self {
            Self::Separate([q, k, v]) => {
                Ok([q.forward(x, pass)?, k.forward(x, pass)?, v.forward(x, pass)?])
            }
            Self::Fused(fused) => fused.forward(x, shape, pass),
        }
    }
}

/// What a fused layer puts first in each of its groups, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Queries, keys, values.
    Qkv,
    /// Queries, values, keys (CodeGen).
    Qvk,
}

/// One layer for queries, keys and values. Its rows are equal groups with some heads of each: one
/// group as in GPT-2, one a head as in GPT-NeoX, one a key head as in Falcon.
#[derive(Clone, Debug)]
pub struct Fused {
    /// The layer.
    pub layer: Linear,
    /// How many groups; they divide the heads' whole width.
    pub groups: usize,
    /// What lies where in a group.
    pub order: Order,
    /// The largest size of what the layer gives (MPT).
    pub clip: Option<f32>,
}

impl Fused {
    /// Groups of queries, keys and values.
    pub fn new(layer: Linear, groups: usize) -> Self {
        Self { layer, groups, order: Order::Qkv, clip: None }
    }

    fn forward(&self, x: &Value, s: &AttentionShape, pass: &Pass) -> Result<[Value; 3]> {
        let y = self.layer.forward(x, pass)?;
        let y = self.clip.map_or(Ok(y.clone()), |limit| ops::clip(&y, limit))?;
        let groups = self.groups.max(1);
        let [q, k, v] = [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.value_dim]
            .map(|width| width / groups);
        let n = y.dims().first().copied().unwrap_or_default();
        let parts = ops::reshape(&y, &[n * groups, q + k + v])?;
        let read = |start, width| {
            let part = ops::columns(&parts, start..start + width)?;
            ops::reshape(&part, &[n, groups * width])
        };
        Ok(match self.order {
            Order::Qkv => [read(0, q)?, read(q, k)?, read(q + k, v)?],
            Order::Qvk => [read(0, q)?, read(q + v, k)?, read(q, v)?],
        })
    }
}
