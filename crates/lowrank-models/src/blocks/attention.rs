//! Self-attention with rotary positions and grouped key/value heads.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Angles, AttentionShape, KeyValues, RotaryStyle},
};
use lowrank_peft::{Pass, layers::Linear};

use super::{
    causal_attention::CausalAttention,
    head_norm::HeadNorm,
    positions::Places,
    projections::{Fused, Projections},
};
use crate::{Builder, Sequences};

/// How the tokens of a sequence are mixed.
pub trait Attention: std::fmt::Debug + Send + Sync {
    /// `x` `[n, hidden_size]` → the same; `angles` are those of its rows, `cache` holds the
    /// sequences' earlier keys and values.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    fn forward(
        &self,
        x: &Value,
        angles: &Angles,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value>;
}

/// What a [`SelfAttention`] is made of.
#[derive(Clone, Debug)]
pub struct SelfAttentionShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output has a bias.
    pub out_bias: bool,
    /// Epsilon of `q_norm` and `k_norm`, where the model has them.
    pub qk_norm: Option<f64>,
    /// Which elements of a head turn together.
    pub rotary: RotaryStyle,
    /// Factor of the scores, where it isn't `1/√head_dim`.
    pub scale: Option<f32>,
    /// `c` of `c·tanh(score/c)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Dropout on the probabilities.
    pub dropout: f32,
}

impl SelfAttentionShape {
    /// The layer `name` at `b` that makes queries, keys and values.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn qkv(&self, name: &str, b: &Builder) -> crate::Result<Linear> {
        let width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        b.linear(name, self.hidden_size, width, self.qkv_bias)
    }

    /// The layer `name` at `b` that leads back to the residual stream.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn output(&self, name: &str, b: &Builder) -> crate::Result<Linear> {
        b.linear(name, self.heads * self.head_dim, self.hidden_size, self.out_bias)
    }

    fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            value_dim: self.head_dim,
            scale: self.scale.unwrap_or((self.head_dim as f32).sqrt().recip()),
            causal: true,
            window: self.window,
            softcap: self.softcap,
        }
    }
}

/// Causal self-attention of the Llama family.
#[derive(Clone, Debug)]
pub struct SelfAttention(CausalAttention);

impl SelfAttention {
    /// Projections `q_proj`, `k_proj`, `v_proj`, `o_proj` at `b`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(s: &SelfAttentionShape, b: &Builder) -> crate::Result<Self> {
        let into = |name, heads| b.linear(name, s.hidden_size, heads * s.head_dim, s.qkv_bias);
        let separate =
            [into("q_proj", s.heads)?, into("k_proj", s.kv_heads)?, into("v_proj", s.kv_heads)?];
        let output = s.output("o_proj", b)?;
        let attention = Self::of(s, Projections::Separate(separate), output, b);
        let Some(eps) = s.qk_norm else { return Ok(attention) };
        let norm = |name| b.rms_norm(name, s.head_dim, eps).map(HeadNorm::Shared);
        Ok(attention.with_head_norms([norm("q_norm")?, norm("k_norm")?]))
    }

    /// Queries, keys and values from one layer, in that order in each of its [`Fused`] groups.
    pub fn fused(
        s: &SelfAttentionShape,
        groups: usize,
        [qkv, output]: [Linear; 2],
        b: &Builder,
    ) -> Self {
        Self::of(s, Projections::Fused(Fused::new(qkv, groups)), output, b)
    }

    fn of(s: &SelfAttentionShape, layers: Projections, output: Linear, b: &Builder) -> Self {
        let dropout = b.dropout("attention", s.dropout);
        let attention = CausalAttention::new(layers, output, s.attention(), dropout);
        Self(CausalAttention { rotary: s.rotary, ..attention })
    }

    /// With norms of query and key heads.
    #[must_use]
    pub fn with_head_norms(self, norms: [HeadNorm; 2]) -> Self {
        Self(CausalAttention { head_norms: Some(norms), ..self.0 })
    }
}

impl Attention for SelfAttention {
    fn forward(
        &self,
        x: &Value,
        angles: &Angles,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let places = Places { angles: Some(angles.clone()), ..Places::default() };
        self.0.forward(x, &places, sequences, cache, pass)
    }
}

/// Attention of sequences to themselves, over a cache where there is one. `bias` as in
/// [`ops::attention`].
///
/// # Errors
/// When the operands don't fit.
pub fn attend(
    [q, k, v]: [&Value; 3],
    bias: Option<&Value>,
    shape: &AttentionShape,
    sequences: &Sequences,
    cache: Option<&mut [KeyValues]>,
    dropout: Option<lowrank_autograd::Dropout>,
) -> Result<Value> {
    let spans = &sequences.spans;
    let Some(cache) = cache else {
        return ops::attention(q, k, v, bias, shape, spans, dropout);
    };
    let (q, k, v) = (q.data().contiguous()?, k.data().contiguous()?, v.data().contiguous()?);
    let y = ops::attention_cached(&q, &k, &v, bias.map(Value::data), shape, spans, cache)?;
    Ok(Value::constant(y))
}
