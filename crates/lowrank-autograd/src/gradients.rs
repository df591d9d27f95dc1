//! Gradient buffers of trainable parameters.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::{ParameterId, Result, composed, kernels};

/// The sum of gradients so far, f32, one buffer for each parameter that received any.
#[derive(Debug, Default)]
pub struct Gradients {
    buffers: BTreeMap<ParameterId, Tensor>,
}

impl Gradients {
    /// No gradients yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `gradient` to the parameter's buffer, in place once there is one.
    pub(crate) fn add(&mut self, id: ParameterId, gradient: &Tensor) -> Result<()> {
        match self.buffers.get_mut(&id) {
            Some(buffer) if composed::device([&*buffer]).is_some() => {
                *buffer = composed::added(buffer, gradient)?;
            }
            Some(buffer) => kernels::elementwise::add_assign(buffer, &gradient.contiguous()?)?,
            None => {
                let wide = gradient.to_dtype(DType::F32)?;
                let own = match composed::device([&wide]) {
                    Some(_) => wide.contiguous()?, // which nobody changes where it lies
                    // A copy of its own: the incoming tensor may share storage with another's.
                    None => wide.force_contiguous()?,
                };
                self.buffers.insert(id, own);
            }
        }
        Ok(())
    }

    /// The buffer of a parameter; `None` if nothing has flowed to it.
    pub fn get(&self, id: ParameterId) -> Option<&Tensor> {
        self.buffers.get(&id)
    }

    /// Empties all buffers.
    pub fn clear(&mut self) {
        self.buffers.clear();
    }

    /// Square root of the sum of all squares, summed in f64 in the parameters' order.
    pub fn global_norm(&self) -> Result<f64> {
        let elsewhere = |buffer: &&Tensor| composed::device([*buffer]).is_some();
        let (there, here): (Vec<_>, Vec<_>) = self.buffers.values().partition(elsewhere);
        let mut sum = composed::square_sum(&there)?;
        for buffer in here {
            sum += kernels::elementwise::sum_of_squares(buffer)?;
        }
        Ok(sum.sqrt())
    }

    /// Multiplies everything by `factor`.
    pub fn scale(&mut self, factor: f32) -> Result<()> {
        for buffer in self.buffers.values_mut() {
            match composed::device([&*buffer]) {
                Some(_) => *buffer = composed::scaled(buffer, factor)?,
                None => kernels::elementwise::scale_assign(buffer, factor)?,
            }
        }
        Ok(())
    }
}
