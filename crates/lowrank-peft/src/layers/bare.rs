//! Tensors that a module holds without a layer of their own.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};

use crate::{BaseTensor, Pass};

/// An `nn.Parameter` or `nn.Buffer` of the model. Clones are the same tensor.
#[derive(Clone, Debug)]
pub struct Bare(Arc<BaseTensor>);

impl Bare {
    /// A tensor of any shape.
    pub fn new(tensor: BaseTensor) -> Self {
        Self(Arc::new(tensor))
    }

    /// The tensor.
    pub fn tensor(&self) -> &BaseTensor {
        &self.0
    }

    /// What stands here in this pass, as a matrix of rows as long as the last dimension, f32.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn rows(&self, pass: &Pass) -> Result<Value> {
        let value = self.0.value(pass)?;
        let columns = value.dims().last().copied().unwrap_or(1);
        let rows = value.dims().iter().product::<usize>() / columns.max(1);
        ops::reshape(&value, &[rows, columns])
    }

    /// What stands here in this pass, in its own shape, f32.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn value(&self, pass: &Pass) -> Result<Value> {
        self.0.value(pass)
    }
}
