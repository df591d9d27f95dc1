//! Self-attention with rotary positions and grouped key/value heads.

use lowrank_autograd::{
    Result, Value,
    ops::{self, Angles, AttentionShape, KeyValues, RotaryStyle},
};
use lowrank_peft::{Pass, layers::Linear};

use super::head_norm::HeadNorm;
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
pub struct SelfAttention {
    projection: Projection,
    output: Linear,
    head_norms: Option<[HeadNorm; 2]>,
    shape: AttentionShape,
    rotary: RotaryStyle,
    dropout: DropoutSite,
}

/// Where queries, keys and values come from.
#[derive(Clone, Debug)]
enum Projection {
    /// A layer for each.
    Separate([Linear; 3]),
    /// One layer, whose rows are so many equal groups of queries, then keys, then values.
    Fused(Linear, usize),
}

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
        let attention = Self::of(s, Projection::Separate(separate), output, b);
        let Some(eps) = s.qk_norm else { return Ok(attention) };
        let norm = |name| b.rms_norm(name, s.head_dim, eps).map(HeadNorm::Shared);
        Ok(attention.with_head_norms([norm("q_norm")?, norm("k_norm")?]))
    }

    /// Queries, keys and values from one layer, in that order.
    pub fn fused(s: &SelfAttentionShape, [qkv, output]: [Linear; 2], b: &Builder) -> Self {
        Self::of(s, Projection::Fused(qkv, 1), output, b)
    }

    /// [`SelfAttention::fused`] whose layer has all three head by head; each has keys of its own.
    pub fn fused_by_head(s: &SelfAttentionShape, [qkv, output]: [Linear; 2], b: &Builder) -> Self {
        Self::of(s, Projection::Fused(qkv, s.heads), output, b)
    }

    fn of(s: &SelfAttentionShape, projection: Projection, output: Linear, b: &Builder) -> Self {
        Self {
            projection,
            output,
            head_norms: None,
            shape: s.attention(),
            rotary: s.rotary,
            dropout: b.dropout("attention", s.dropout),
        }
    }

    /// With norms of query and key heads.
    #[must_use]
    pub fn with_head_norms(self, norms: [HeadNorm; 2]) -> Self {
        Self { head_norms: Some(norms), ..self }
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
        let s = &self.shape;
        let [mut q, mut k, v] = match &self.projection {
            Projection::Separate([q, k, v]) => {
                [q.forward(x, pass)?, k.forward(x, pass)?, v.forward(x, pass)?]
            }
            Projection::Fused(qkv, groups) => split(&qkv.forward(x, pass)?, *groups, s)?,
        };
        if let Some([q_norm, k_norm]) = &self.head_norms {
            (q, k) = (q_norm.forward(&q, pass)?, k_norm.forward(&k, pass)?);
        }
        let q = ops::rotary(&q, s.head_dim, angles, self.rotary)?;
        let k = ops::rotary(&k, s.head_dim, angles, self.rotary)?;
        let mixed = attend(&q, &k, &v, s, sequences, cache, self.dropout.mask(pass))?;
        self.output.forward(&mixed, pass)
    }
}

/// Queries, keys and values of `qkv` `[n, widths of all three]`, which has them in `groups`.
fn split(qkv: &Value, groups: usize, s: &AttentionShape) -> Result<[Value; 3]> {
    let n = qkv.dims().first().copied().unwrap_or_default();
    let [q, k, v] = [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.value_dim];
    let grouped = ops::reshape(qkv, &[n * groups, (q + k + v) / groups])?;
    let read = |start, width| {
        let part = ops::columns(&grouped, start / groups..(start + width) / groups)?;
        ops::reshape(&part, &[n, width])
    };
    Ok([read(0, q)?, read(q, k)?, read(q + k, v)?])
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
