//! The residual branch of pre-norm blocks (arXiv:2002.04745).

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{Pass, layers::Norm};

use crate::DropoutSite;

/// `x + drop(f(norm(x)))` around some `f`.
#[derive(Clone, Debug)]
pub struct PreNorm {
    /// Before `f`.
    pub norm: Norm,
    /// After it.
    pub dropout: DropoutSite,
}

impl PreNorm {
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
        let y = f(&self.norm.forward(x, pass)?)?;
        ops::add(x, &self.dropout.forward(&y, pass)?)
    }
}
