//! Tensors that wait for the backward pass: as they are, or in bf16 where they come from weights
//! of bf16, and were computed with no more than its precision anyway.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};
use half::bf16;

use crate::{
    Result, Value,
    kernels::{
        F32,
        elementwise::{narrowed, widened},
        elsewhere, tensor,
    },
    weight::Elements,
};

/// Where the bf16 version of a value is put once an operation keeps it; all that do share it.
pub(crate) type Half = Arc<Narrow>;

/// A value's bf16 version: as kernels or as candle's operations read it.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    elements: OnceLock<Arc<Vec<bf16>>>,
    tensor: OnceLock<Tensor>,
}

impl Narrow {
    /// Its elements, if an operation keeps them already.
    pub(crate) fn get(&self) -> Option<&Arc<Vec<bf16>>> {
        self.elements.get()
    }

    /// Its elements, which `narrow` makes if none are kept yet.
    pub(crate) fn get_or_init(&self, narrow: impl FnOnce() -> Arc<Vec<bf16>>) -> &Arc<Vec<bf16>> {
        self.elements.get_or_init(narrow)
    }
}

/// A tensor kept for the backward pass.
#[derive(Debug)]
pub(crate) enum Kept {
    Whole(Tensor),
    Half {
        elements: Arc<Vec<bf16>>,
        shape: Vec<usize>,
    },
    /// bf16, by candle's operations.
    Composed(Tensor),
}

impl Kept {
    /// Keeps a value that has been read as `data`, whose elements row by row are `elements`.
    pub(crate) fn of(value: &Value, data: &Tensor, elements: &[f32]) -> Self {
        match value.half() {
            None => Self::Whole(data.clone()),
            Some(half) => {
                let elements = Arc::clone(half.get_or_init(|| Arc::new(narrowed(elements))));
                Self::Half { elements, shape: data.dims().to_vec() }
            }
        }
    }

    /// Keeps a value that has been read as `data` by candle's operations.
    pub(crate) fn composed(value: &Value, data: &Tensor) -> Self {
        let Some(place) = value.half().map(|half| &half.tensor) else {
            return Self::Whole(data.clone());
        };
        match place.get().cloned().map_or_else(|| data.to_dtype(DType::BF16), Ok) {
            Ok(narrow) => Self::Composed(place.get_or_init(|| narrow).clone()),
            Err(_) => Self::Whole(data.clone()), // what fails here fails again where it is noticed
        }
    }

    /// Its elements as they lie, for a kernel that reads them in pieces.
    ///
    /// # Errors
    /// When they aren't contiguous f32 on the CPU.
    pub(crate) fn read(&self, op: &'static str) -> Result<Read<'_>> {
        match self {
            Self::Whole(tensor) => Ok(Read::Whole(F32::of(op, tensor)?)),
            Self::Half { elements, .. } => Ok(Read::Half(elements)),
            Self::Composed(_) => Err(elsewhere(op)),
        }
    }

    /// The tensor in f32.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Whole(tensor) => Ok(tensor.clone()),
            Self::Composed(narrow) => Ok(narrow.to_dtype(DType::F32)?),
            Self::Half { elements, shape } => tensor(widened(elements), shape),
        }
    }
}

/// The elements of a kept tensor, borrowed.
pub(crate) enum Read<'a> {
    Whole(F32<'a>),
    Half(&'a [bf16]),
}

impl Read<'_> {
    pub(crate) fn elements(&self) -> Elements<'_> {
        match self {
            Self::Whole(elements) => Elements::F32(elements),
            Self::Half(elements) => Elements::Bf16(elements),
        }
    }
}
