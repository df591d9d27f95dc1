//! Self-attention with separate projections, rotary positions and grouped key/value heads.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Angles, AttentionShape, KeyValues, RotaryStyle},
};
use lowrank_peft::{
    Pass,
    layers::{Linear, Norm},
};

use crate::{Builder, DropoutSite, Sequences};

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
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub out_bias: bool,
    /// Epsilon of `q_norm` and `k_norm`, where the model has them.
    pub qk_norm: Option<f64>,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Dropout on the probabilities.
    pub dropout: f32,
}

/// Causal self-attention of the Llama family.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    shape: AttentionShape,
    dropout: DropoutSite,
}

impl SelfAttention {
    /// Projections `q_proj`, `k_proj`, `v_proj`, `o_proj` at `b`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(s: &SelfAttentionShape, b: &Builder) -> crate::Result<Self> {
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let norm = |name| s.qk_norm.map(|eps| b.rms_norm(name, s.head_dim, eps)).transpose();
        Ok(Self {
            q_proj: b.linear("q_proj", s.hidden_size, q, s.qkv_bias)?,
            k_proj: b.linear("k_proj", s.hidden_size, kv, s.qkv_bias)?,
            v_proj: b.linear("v_proj", s.hidden_size, kv, s.qkv_bias)?,
            o_proj: b.linear("o_proj", q, s.hidden_size, s.out_bias)?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            shape: AttentionShape {
                heads: s.heads,
                kv_heads: s.kv_heads,
                head_dim: s.head_dim,
                value_dim: s.head_dim,
                scale: (s.head_dim as f32).sqrt().recip(),
                causal: true,
                window: s.window,
                softcap: None,
            },
            dropout: b.dropout("attention", s.dropout),
        })
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
        let dim = self.shape.head_dim;
        let turned = |projection: &Linear, norm: &Option<Norm>| {
            let y = projection.forward(x, pass)?;
            let y = norm.as_ref().map_or(Ok(y.clone()), |norm| norm.forward_heads(&y, pass))?;
            ops::rotary(&y, dim, angles, RotaryStyle::Halves)
        };
        let q = turned(&self.q_proj, &self.q_norm)?;
        let k = turned(&self.k_proj, &self.k_norm)?;
        let v = self.v_proj.forward(x, pass)?;
        let mixed = attend(&q, &k, &v, &self.shape, sequences, cache, self.dropout.mask(pass))?;
        self.o_proj.forward(&mixed, pass)
    }
}

/// Attention of sequences to themselves, over a cache where there is one.
///
/// # Errors
/// When the operands don't fit.
pub fn attend(
    q: &Value,
    k: &Value,
    v: &Value,
    shape: &AttentionShape,
    sequences: &Sequences,
    cache: Option<&mut [KeyValues]>,
    dropout: Option<lowrank_autograd::Dropout>,
) -> Result<Value> {
    let spans = &sequences.spans;
    let Some(cache) = cache else {
        return ops::attention(q, k, v, None, shape, spans, dropout);
    };
    let (q, k, v) = (q.data().contiguous()?, k.data().contiguous()?, v.data().contiguous()?);
    let y = ops::attention_cached(&q, &k, &v, None, shape, spans, cache)?;
    Ok(Value::constant(y))
}
