//! The arithmetic itself, on slices. Every kernel has a plain version in [`crate::reference`].
//!
//! How work is cut up depends on the problem's size alone, never on the number of threads, so the
//! bits of a result don't either.

use std::ops::Deref;

use candle_core::{DType, Device, Storage, StorageRef, Tensor};

use crate::{Error, Result, composed::composes_on_cpu};

pub(crate) mod activation;
pub mod adamw;
pub(crate) mod attention;
pub(crate) mod buffer;
pub(crate) mod cross_entropy;
pub(crate) mod disentangled;
pub(crate) mod elementwise;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod simd;

/// A contiguous f32 tensor's elements, borrowed.
pub(crate) struct F32<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl<'a> F32<'a> {
    /// Borrows `tensor`, which must be contiguous f32 on the CPU.
    pub(crate) fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() != DType::F32 {
            let (what, found) = ("an operand", tensor.dtype());
            return Err(Error::Dtype { op, what, found, must_be: "f32" });
        }
        if composes_on_cpu() {
            return Err(elsewhere(op));
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            let message = format!("`{op}`: a contiguous operand was expected");
            return Err(candle_core::Error::Msg(message).into());
        };
        match &*storage {
            Storage::Cpu(cpu) if cpu.as_slice::<f32>()?.len() >= end => {}
            _ => return Err(elsewhere(op)),
        }
        Ok(Self { storage, start, len: end - start })
    }
}

impl Deref for F32<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(cpu) => cpu
                .as_slice::<f32>()
                .ok()
                .and_then(|s| s.get(self.start..self.start + self.len))
                .unwrap_or_default(),
            _ => &[],
        }
    }
}

/// What kernels say of operands that they can't read.
pub(crate) fn elsewhere(op: &'static str) -> Error {
    let message = format!("`{op}` has no version for this device yet: it runs on the CPU alone");
    candle_core::Error::Msg(message).into()
}

/// A new tensor of computed elements.
pub(crate) fn tensor(elements: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(elements, shape, &Device::Cpu)?)
}

/// The two dimensions of a matrix, or an error that names operation and operand.
pub(crate) fn dims2(op: &'static str, what: &'static str, t: &Tensor) -> Result<(usize, usize)> {
    match t.dims() {
        &[rows, columns] => Ok((rows, columns)),
        found => {
            let must_be = "a matrix".to_owned();
            Err(Error::Shape { op, what, found: found.to_vec(), must_be })
        }
    }
}

/// An error unless `t` has exactly these dimensions.
pub(crate) fn check_dims(
    op: &'static str,
    what: &'static str,
    t: &Tensor,
    dims: &[usize],
) -> Result<()> {
    if t.dims() == dims {
        return Ok(());
    }
    Err(Error::Shape { op, what, found: t.dims().to_vec(), must_be: format!("{dims:?}") })
}
