//! Causal self-attention of layers that the architecture names itself: queries, keys and values of
//! three layers or of one, places by rotation (arXiv:2104.09864), by a bias (arXiv:2108.12409) or
//! not seen here at all. Paper: arXiv:1706.03762.

use candle_core::{Device, Tensor};
use lowrank_autograd::{
    Result, Value,
    ops::{self, AttentionShape, KeyValues, RotaryStyle},
};
use lowrank_peft::{Pass, layers::Linear};

use super::{
    attention::attend, head_norm::HeadNorm, multi_head::divided_attention, positions::Places,
    projections::Projections,
};
use crate::{Config, DropoutSite, Sequences};

/// [`divided_attention`] to what came before.
///
/// # Errors
/// As there.
pub fn causal_shape(c: &Config, width: &str, heads: &str) -> crate::Result<AttentionShape> {
    Ok(AttentionShape { causal: true, ..divided_attention(c, width, heads)? })
}

/// `output(softmax(s·q·kᵀ + bias)·v)` over what came before.
#[derive(Clone, Debug)]
pub struct CausalAttention {
    /// Queries, keys and values.
    pub projections: Projections,
    /// Norms of the query heads and of the key heads.
    pub head_norms: Option<[HeadNorm; 2]>,
    /// How heads turn, where places are angles.
    pub rotary: RotaryStyle,
    /// From the heads' width to the residual stream's.
    pub output: Linear,
    /// Heads, scale and mask.
    pub shape: AttentionShape,
    /// Dropout on the probabilities.
    pub dropout: DropoutSite,
}

impl CausalAttention {
    /// Attention without norms, whose heads turn by halves if at all.
    pub fn new(
        projections: Projections,
        output: Linear,
        shape: AttentionShape,
        dropout: DropoutSite,
    ) -> Self {
        let (head_norms, rotary) = (None, RotaryStyle::Halves);
        Self { projections, head_norms, rotary, output, shape, dropout }
    }

    /// `x` `[n, hidden_size]` → the same; `cache` holds the sequences' earlier keys and values.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(
        &self,
        x: &Value,
        places: &Places,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let [mut q, mut k, v] = self.projections.forward(x, &self.shape, pass)?;
        if let Some([of_queries, of_keys]) = &self.head_norms {
            (q, k) = (of_queries.forward(&q, pass)?, of_keys.forward(&k, pass)?);
        }
        if let Some(angles) = &places.angles {
            let turn = |x: &Value| ops::rotary(x, self.shape.head_dim, angles, self.rotary);
            (q, k) = (turn(&q)?, turn(&k)?);
        }
        let mut shape = self.shape.clone();
        if let Some(bias) = &places.key_bias {
            (q, k, shape) = with_key_bias(&q, &k, bias, &shape)?;
        }
        let (bias, dropout) = (places.bias.as_ref(), self.dropout.mask(pass));
        let mixed = attend([&q, &k, &v], bias, &shape, sequences, cache, dropout)?;
        self.output.forward(&mixed, pass)
    }
}

/// Queries and keys whose products have `bias` `[n, heads]` in them: a key head gets a column for
/// each query head that reads it, and a query head picks its own.
fn with_key_bias(
    q: &Value,
    k: &Value,
    bias: &Tensor,
    shape: &AttentionShape,
) -> Result<(Value, Value, AttentionShape)> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let (n, group) = (q.dims().first().copied().unwrap_or_default(), heads / kv_heads);
    let pick = |i: usize| if i / group % group == i % group { shape.scale.recip() } else { 0.0 };
    let picks: Vec<f32> = (0..n * heads * group).map(|i| pick(i % (heads * group))).collect();
    let picks = Tensor::from_vec(picks, (n * heads, group), &Device::Cpu)?;
    let wider = |x: &Value, heads: usize, more: Tensor| {
        let rows = ops::reshape(x, &[n * heads, head_dim])?;
        let rows = ops::join_columns(&[rows, Value::constant(more)])?;
        ops::reshape(&rows, &[n, heads * (head_dim + group)])
    };
    let q = wider(q, heads, picks)?;
    let k = wider(k, kv_heads, bias.reshape((n * kv_heads, group))?)?;
    Ok((q, k, AttentionShape { head_dim: head_dim + group, ..shape.clone() }))
}
