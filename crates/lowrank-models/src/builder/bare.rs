//! Tensors that modules hold beside their layers.

use candle_core::{DType, Device, Tensor};
use lowrank_peft::{
    BaseTensor,
    layers::{Bare, Layer},
};

use super::Builder;
use crate::Result;

impl Builder {
    /// A tensor that a module holds without a layer of its own.
    ///
    /// # Errors
    /// When it is missing or misshapen.
    pub fn parameter(&self, name: &str, shape: &[usize]) -> Result<Bare> {
        let path = self.join(name);
        let tensor = BaseTensor::widened(path.clone(), &self.tensor(&path, shape)?)?;
        Ok(self.register_bare(&path, tensor))
    }

    /// A tensor that is saved and never trained, zeros where the file lacks it.
    ///
    /// # Errors
    /// When it is misshapen.
    pub fn buffer_or_zeros(&self, name: &str, shape: &[usize]) -> Result<Bare> {
        let path = self.join(name);
        let weight = match self.find(&path) {
            Some(_) => self.tensor(&path, shape)?,
            None => self.made(&Tensor::zeros(shape, DType::F32, &Device::Cpu)?)?,
        };
        let tensor = BaseTensor::buffer(path.clone(), &weight)?;
        Ok(self.register_bare(&path, tensor))
    }

    /// A buffer of `len` numbers that nothing here reads and the model's own code wants: where the
    /// file has it, it is written again when the model is saved.
    ///
    /// # Errors
    /// When it is misshapen.
    pub fn keep(&self, name: &str, len: usize) -> Result<()> {
        if self.find(&self.join(name)).is_some() {
            self.buffer_or_zeros(name, &[len])?;
        }
        Ok(())
    }

    /// [`Builder::keep`] of a parameter, which adapters with `bias: all` name too.
    ///
    /// # Errors
    /// When it is misshapen.
    pub fn keep_parameter(&self, name: &str, len: usize) -> Result<()> {
        if self.find(&self.join(name)).is_some() {
            self.parameter(name, &[len])?;
        }
        Ok(())
    }

    /// [`Builder::parameter`] of a task head: where the file lacks it, it starts at zero.
    ///
    /// # Errors
    /// When it is misshapen.
    pub fn head_parameter(&self, name: &str, shape: &[usize]) -> Result<Bare> {
        let path = self.join(name);
        if self.find(&path).is_some() {
            return self.parameter(name, shape);
        }
        self.built().fresh.push(path.clone());
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let tensor = BaseTensor::widened(path.clone(), &self.made(&zeros)?)?;
        Ok(self.register_bare(&path, tensor))
    }

    pub(super) fn register_bare(&self, path: &str, tensor: BaseTensor) -> Bare {
        let bare = Bare::new(tensor);
        self.built().modules.push(path, Layer::Bare(bare.clone()));
        bare
    }
}
