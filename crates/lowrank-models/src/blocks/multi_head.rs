//! Multi-head attention over absolute or relative positions: of a sequence to itself, and of a
//! target to its source. Paper: arXiv:1706.03762.

use lowrank_autograd::{
    Result, Value,
    ops::{self, AttentionShape, KeyValues},
};
use lowrank_peft::{Pass, layers::Linear};

use super::attention::attend;
use crate::{Config, DropoutSite, Encoded, Sequences};

/// `output(softmax(s·q·kᵀ + bias)·v)`, of layers that the architecture names itself.
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
    /// From the heads' width to the residual stream's.
    pub output: Linear,
    /// Heads, scale and mask.
    pub shape: AttentionShape,
    /// Dropout on the probabilities.
    pub dropout: DropoutSite,
}

/// Heads of that width, each with keys of its own, scaled by `1/√head_dim`; all keys are seen.
pub fn full_attention(heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads: heads,
        head_dim,
        value_dim: head_dim,
        scale: (head_dim as f32).sqrt().recip(),
        causal: false,
        window: None,
        softcap: None,
    }
}

/// [`full_attention`] whose heads divide the residual stream between them; the arguments are the
/// fields of the config with its width and the number of heads.
///
/// # Errors
/// When a field is wrong or the heads don't divide the width.
pub fn divided_attention(c: &Config, width: &str, heads: &str) -> crate::Result<AttentionShape> {
    let (size, count) = (c.size(width)?, c.size(heads)?);
    match size.is_multiple_of(count) {
        true => Ok(full_attention(count, size / count)),
        false => {
            let heads = c.name_of(heads);
            Err(c.wrong(width, format!("a multiple of `{heads}`, which is {count}")))
        }
    }
}

impl MultiHeadAttention {
    /// Attention of `x` `[n, hidden_size]` to itself, over a cache where there is one. `bias` as in
    /// [`ops::attention`].
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(
        &self,
        x: &Value,
        bias: Option<&Value>,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|layer| layer.forward(x, pass));
        let (q, k, v, dropout) = (q?, k?, v?, self.dropout.mask(pass));
        let mixed = attend([&q, &k, &v], bias, &self.shape, sequences, cache, dropout)?;
        self.output.forward(&mixed, pass)
    }

    /// Attention of the targets `x` to their sources. `cached` keeps the sources' keys and values
    /// from one step of a generation to the next.
    ///
    /// # Errors
    /// When the operands don't fit.
    pub fn across(
        &self,
        x: &Value,
        source: &Encoded,
        sequences: &Sequences,
        cached: Option<&mut Option<(Value, Value)>>,
        pass: &Pass,
    ) -> Result<Value> {
        let compute = || -> Result<(Value, Value)> {
            let read = |layer: &Linear| layer.forward(&source.hidden, &source.pass);
            Ok((read(&self.key)?, read(&self.value)?))
        };
        let (k, v) = match cached {
            None => compute()?,
            Some(Some(kept)) => kept.clone(),
            Some(empty) => empty.insert(compute()?).clone(),
        };
        let q = self.query.forward(x, pass)?;
        let (spans, mask) = (sequences.across(&source.sequences), self.dropout.mask(pass));
        self.output.forward(&ops::attention(&q, &k, &v, None, &self.shape, &spans, mask)?, pass)
    }
}
