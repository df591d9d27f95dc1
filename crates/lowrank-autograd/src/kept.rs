//! Tensors that wait for the backward pass: as they are, or in bf16 where they are f32 that comes
//! from weights of bf16, such as sums over layers and results on other devices.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};

use crate::{
    Result, Value,
    elements::Elements,
    kernels::{Computed, Floats, elementwise::narrowed, tensor},
};

/// Where candle's operations put the bf16 version of a value once one keeps it; all that do share
/// it. Our own hand on values that are bf16 already.
pub(crate) type Half = Arc<OnceLock<Tensor>>;

/// A tensor kept for the backward pass.
#[derive(Debug)]
pub(crate) struct Kept(Tensor);

impl Kept {
    /// Keeps a value that has been read as `data`.
    pub(crate) fn of(value: &Value, data: &Tensor) -> Self {
        let narrow = || match Floats::of("kept", data).ok()?.elements() {
            Elements::F32(elements) => Computed::Bf16(narrowed(elements)).tensor(data.dims()).ok(),
            _ => None,
        };
        let narrow = value.half().and_then(|_| narrow());
        Self(narrow.unwrap_or_else(|| data.clone()))
    }

    /// Keeps a value that has been read as `data` by candle's operations.
    pub(crate) fn composed(value: &Value, data: &Tensor) -> Self {
        if data.dtype() == DType::BF16 {
            return Self(data.clone());
        }
        let Some(place) = value.half() else {
            return Self(data.clone());
        };
        match place.get().cloned().map_or_else(|| data.to_dtype(DType::BF16), Ok) {
            Ok(narrow) => Self(place.get_or_init(|| narrow).clone()),
            Err(_) => Self(data.clone()), // what fails here fails again where it is noticed
        }
    }

    /// Its elements as they lie.
    ///
    /// # Errors
    /// When they aren't contiguous on the CPU.
    pub(crate) fn read(&self, op: &'static str) -> Result<Floats<'_>> {
        Floats::of(op, &self.0)
    }

    /// The tensor as it was kept.
    pub(crate) fn into_tensor(self) -> Tensor {
        self.0
    }

    /// The tensor in f32.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match Floats::of("kept", &self.0) {
            Ok(floats) => tensor(floats.elements().wide().into_owned(), self.0.dims()),
            Err(_) => Ok(self.0.to_dtype(DType::F32)?),
        }
    }
}
