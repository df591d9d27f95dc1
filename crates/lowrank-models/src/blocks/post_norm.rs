//! The residual branch of post-norm blocks (arXiv:1706.03762).

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{Pass, layers::Norm};

use crate::DropoutSite;

/// `norm(x + drop(f(x)))` around some `f`.
#[derive(Clone, Debug)]
pub struct PostNorm {
    /// After `f`, before the sum.
    pub dropout: DropoutSite,
    /// After the sum.
    pub norm: Norm,
}

impl PostNorm {
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
        let y = self.dropout.forward(&f(x)?, pass)?;
        self.norm.forward(&ops::add(x, &y)?, pass)
    }
}
