//! The ways in which a decoder's block joins attention and MLP to the residual stream.

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{Pass, layers::Norm};

use super::{post_norm::PostNorm, pre_norm::PreNorm};
use crate::DropoutSite;

/// Around attention or MLP.
#[derive(Clone, Debug)]
pub enum Residual {
    /// `x + drop(f(norm(x)))` (arXiv:2002.04745).
    Pre(PreNorm),
    /// `norm(x + drop(f(x)))` (arXiv:1706.03762).
    Post(PostNorm),
    /// `norm(x) + drop(f(norm(x)))`: BLOOM's `apply_residual_connection_post_layernorm`.
    Normed(PreNorm),
}

impl Residual {
    /// Around a function with a norm before it.
    pub fn pre(norm: Norm, dropout: DropoutSite) -> Self {
        Self::Pre(PreNorm { norm, dropout })
    }

    /// `x` `[n, hidden_size]` → the same.
    ///
    /// # Errors
    /// Whatever `f` returns; when `x` doesn't fit.
    pub fn around(
        &self,
        x: &Value,
        pass: &Pass,
        f: impl FnOnce(&Value) -> Result<Value>,
    ) -> Result<Value> {
        match self {
            Self::Pre(around) => around.around(x, pass, f),
            Self::Post(around) => around.around(x, pass, f),
            Self::Normed(PreNorm { norm, dropout }) => {
                let x = norm.forward(x, pass)?;
                ops::add(&x, &dropout.forward(&f(&x)?, pass)?)
            }
        }
    }
}

/// Attention and MLP beside each other: `x + attn(norm(x)) + mlp(norm(x))` (GPT-J).
#[derive(Clone, Debug)]
pub struct Parallel {
    /// Before the attention, and before the MLP if that has none of its own.
    pub norm: Norm,
    /// Before the MLP.
    pub mlp_norm: Option<Norm>,
    /// What is dropped.
    pub dropout: ParallelDropout,
}

/// Where parallel branches drop.
#[derive(Clone, Copy, Debug)]
pub enum ParallelDropout {
    /// After the attention, and after the MLP.
    Each([DropoutSite; 2]),
    /// Their sum.
    Sum(DropoutSite),
}

impl Parallel {
    /// Branches after one norm, each with a dropout of its own.
    pub fn after(norm: Norm, dropouts: [DropoutSite; 2]) -> Self {
        Self { norm, mlp_norm: None, dropout: ParallelDropout::Each(dropouts) }
    }

    /// `x` `[n, hidden_size]` → the same.
    ///
    /// # Errors
    /// Whatever the branches return; when `x` doesn't fit.
    pub fn around(
        &self,
        x: &Value,
        pass: &Pass,
        attention: impl FnOnce(&Value) -> Result<Value>,
        mlp: impl FnOnce(&Value) -> Result<Value>,
    ) -> Result<Value> {
        let normed = self.norm.forward(x, pass)?;
        let attended = attention(&normed)?;
        let thought = match &self.mlp_norm {
            Some(norm) => mlp(&norm.forward(x, pass)?)?,
            None => mlp(&normed)?,
        };
        let sum = match &self.dropout {
            ParallelDropout::Each([first, second]) => {
                ops::add(&second.forward(&thought, pass)?, &first.forward(&attended, pass)?)?
            }
            ParallelDropout::Sum(both) => both.forward(&ops::add(&thought, &attended)?, pass)?,
        };
        ops::add(&sum, x)
    }
}
