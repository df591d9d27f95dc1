//! Causal self-attention whose queries, keys and values come from one layer.
//! Paper: arXiv:1706.03762.

use lowrank_autograd::{
    Result, Value,
    ops::{self, AttentionShape, KeyValues},
};
use lowrank_peft::{Pass, layers::Linear};

use super::attention::attend;
use crate::{DropoutSite, Sequences};

/// `output(softmax(s·q·kᵀ)·v)` with `[q, k, v] = qkv(x)`, of layers that the architecture names
/// itself.
#[derive(Clone, Debug)]
pub struct FusedAttention {
    /// All queries, then all keys, then all values.
    pub qkv: Linear,
    /// From the heads' width to the residual stream's.
    pub output: Linear,
    /// Heads, scale and mask.
    pub shape: AttentionShape,
    /// Dropout on the probabilities.
    pub dropout: DropoutSite,
}

impl FusedAttention {
    /// `x` `[n, hidden_size]` → the same; `cache` holds the sequences' earlier keys and values.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(
        &self,
        x: &Value,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let s = &self.shape;
        let keys = s.heads * s.head_dim;
        let values = keys + s.kv_heads * s.head_dim;
        let end = values + s.kv_heads * s.value_dim;
        let qkv = self.qkv.forward(x, pass)?;
        let q = ops::columns(&qkv, 0..keys)?;
        let k = ops::columns(&qkv, keys..values)?;
        let v = ops::columns(&qkv, values..end)?;
        let mixed = attend(&q, &k, &v, s, sequences, cache, self.dropout.mask(pass))?;
        self.output.forward(&mixed, pass)
    }
}
