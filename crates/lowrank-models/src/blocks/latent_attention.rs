//! Multi-head latent attention: keys and values of all heads come from one narrow vector a token,
//! positions from another that the heads share (arXiv:2405.04434, section 2.1).

use std::sync::Arc;

use lowrank_autograd::{
    Result, Value,
    ops::{self, Angles, AttentionShape, KeyValues, RotaryStyle},
};
use lowrank_peft::{
    Pass,
    layers::{Linear, Norm},
};

use super::attention::{Attention, attend};
use crate::{Builder, DropoutSite, Sequences};

/// Epsilon of the norms of the narrow vectors, whatever that of the blocks' norms is.
const EPSILON: f64 = 1e-6;

/// What a [`LatentAttention`] is made of.
#[derive(Clone, Debug)]
pub struct LatentAttentionShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Heads.
    pub heads: usize,
    /// Width of the narrow vector of queries; none without one.
    pub q_lora_rank: Option<usize>,
    /// Width of the narrow vector of keys and values.
    pub kv_lora_rank: usize,
    /// Elements of a query and key head that don't know their position.
    pub nope_dim: usize,
    /// Elements after them that do.
    pub rope_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Which of them make pairs.
    pub rope_style: RotaryStyle,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether the layers that read or write the residual stream have biases.
    pub bias: bool,
    /// Dropout on the probabilities.
    pub dropout: f32,
}

/// The attention of DeepSeek-V2 and V3.
#[derive(Clone, Debug)]
pub struct LatentAttention {
    queries: Queries,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: Norm,
    kv_b_proj: Linear,
    o_proj: Linear,
    shape: LatentAttentionShape,
    dropout: DropoutSite,
}

#[derive(Clone, Debug)]
enum Queries {
    Whole { q_proj: Linear },
    Narrow { q_a_proj: Linear, q_a_layernorm: Norm, q_b_proj: Linear },
}

impl LatentAttention {
    /// The projections at `b`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(s: LatentAttentionShape, b: &Builder) -> crate::Result<Self> {
        let (hidden, rank) = (s.hidden_size, s.kv_lora_rank);
        let key_width = s.heads * (s.nope_dim + s.rope_dim);
        let queries = match s.q_lora_rank {
            None => Queries::Whole { q_proj: b.linear("q_proj", hidden, key_width, false)? },
            Some(rank) => Queries::Narrow {
                q_a_proj: b.linear("q_a_proj", hidden, rank, s.bias)?,
                q_a_layernorm: b.rms_norm("q_a_layernorm", rank, EPSILON)?,
                q_b_proj: b.linear("q_b_proj", rank, key_width, false)?,
            },
        };
        let (latent, values) = (rank + s.rope_dim, s.heads * s.value_dim);
        let expanded = s.heads * s.nope_dim + values;
        Ok(Self {
            queries,
            kv_a_proj_with_mqa: b.linear("kv_a_proj_with_mqa", hidden, latent, s.bias)?,
            kv_a_layernorm: b.rms_norm("kv_a_layernorm", rank, EPSILON)?,
            kv_b_proj: b.linear("kv_b_proj", rank, expanded, false)?,
            o_proj: b.linear("o_proj", values, hidden, s.bias)?,
            dropout: b.dropout("attention", s.dropout),
            shape: s,
        })
    }

    /// Keys and values, `[n, heads·width]` each.
    fn keys_and_values(&self, x: &Value, angles: &Angles, pass: &Pass) -> Result<(Value, Value)> {
        let s = &self.shape;
        let (n, rank) = (x.dims()[0], s.kv_lora_rank);
        let latent = self.kv_a_proj_with_mqa.forward(x, pass)?;
        let shared = ops::columns(&latent, rank..rank + s.rope_dim)?;
        let shared = ops::rotary(&shared, s.rope_dim, angles, s.rope_style)?;
        let latent = self.kv_a_layernorm.forward(&ops::columns(&latent, 0..rank)?, pass)?;
        let width = s.nope_dim + s.value_dim;
        let expanded = self.kv_b_proj.forward(&latent, pass)?;
        let expanded = ops::reshape(&expanded, &[n * s.heads, width])?;
        let token: Arc<[usize]> = (0..n * s.heads).map(|row| row / s.heads).collect();
        let shared = ops::select_rows(&shared, &token)?;
        let k = ops::join_columns(&[ops::columns(&expanded, 0..s.nope_dim)?, shared])?;
        let v = ops::columns(&expanded, s.nope_dim..width)?;
        let k = ops::reshape(&k, &[n, s.heads * (s.nope_dim + s.rope_dim)])?;
        Ok((k, ops::reshape(&v, &[n, s.heads * s.value_dim])?))
    }
}

impl Queries {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        match self {
            Self::Whole { q_proj } => q_proj.forward(x, pass),
            Self::Narrow { q_a_proj, q_a_layernorm, q_b_proj } => {
                q_b_proj.forward(&q_a_layernorm.forward(&q_a_proj.forward(x, pass)?, pass)?, pass)
            }
        }
    }
}

impl Attention for LatentAttention {
    fn forward(
        &self,
        x: &Value,
        angles: &Angles,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let s = &self.shape;
        let head_dim = s.nope_dim + s.rope_dim;
        let q = self.queries.forward(x, pass)?;
        let q = ops::rotary_from(&q, head_dim, s.nope_dim, angles, s.rope_style)?;
        let (k, v) = self.keys_and_values(x, angles, pass)?;
        let shape = AttentionShape {
            heads: s.heads,
            kv_heads: s.heads,
            head_dim,
            value_dim: s.value_dim,
            scale: s.scale,
            causal: true,
            window: None,
            softcap: None,
        };
        let mixed = attend([&q, &k, &v], None, &shape, sequences, cache, self.dropout.mask(pass))?;
        self.o_proj.forward(&mixed, pass)
    }
}
