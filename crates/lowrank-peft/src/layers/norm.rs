//! Normalization layers.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};

use crate::{BaseTensor, Pass};

/// Which normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, without a mean or a bias.
    Rms,
    /// Root mean square, with factors that are kept as their difference to 1 (Gemma).
    RmsAroundOne,
    /// Mean and variance.
    Layer,
}

/// A normalization over the last dimension. Clones are the same layer.
#[derive(Clone, Debug)]
pub struct Norm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: NormKind,
    weight: BaseTensor,
    bias: Option<BaseTensor>,
    eps: f64,
}

impl Norm {
    /// A layer over its base tensors, `[d]` each.
    pub fn new(kind: NormKind, weight: BaseTensor, bias: Option<BaseTensor>, eps: f64) -> Self {
        Self(Arc::new(Inner { kind, weight, bias, eps }))
    }

    /// The factors.
    pub fn weight(&self) -> &BaseTensor {
        &self.0.weight
    }

    /// The offsets.
    pub fn bias(&self) -> Option<&BaseTensor> {
        self.0.bias.as_ref()
    }

    /// `x` `[n, d]` → the same.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let weight = self.0.weight.value(pass)?;
        let bias = self.bias().map(|b| b.value(pass)).transpose()?;
        match self.0.kind {
            NormKind::Rms => ops::rms_norm(x, &weight, self.0.eps),
            NormKind::RmsAroundOne => ops::rms_norm(x, &ops::shift(&weight, 1.0)?, self.0.eps),
            NormKind::Layer => ops::layer_norm(x, &weight, bias.as_ref(), self.0.eps),
        }
    }

    /// [`Norm::forward`] of every group of `d` columns of `x` `[n, k·d]`, as norms of query and
    /// key heads have it.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward_heads(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let d = self.0.weight.weight().elem_count().max(1);
        let shape = x.dims().to_vec();
        let rows = shape.iter().product::<usize>() / d;
        let y = self.forward(&ops::reshape(x, &[rows, d])?, pass)?;
        ops::reshape(&y, &shape)
    }
}
