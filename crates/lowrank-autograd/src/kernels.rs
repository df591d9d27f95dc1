//! The arithmetic itself, on slices. Every kernel has a plain version in [`crate::reference`].
//!
//! How work is cut up depends on the problem's size alone, never on the number of threads, so the
//! bits of a result don't either.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, Storage, StorageRef, Tensor};
use half::bf16;

use crate::{Error, Result, composed::composes_on_cpu, elements::Elements};

pub(crate) mod activation;
pub mod adamw;
pub(crate) mod attention;
pub(crate) mod buffer;
pub(crate) mod cross_entropy;
pub(crate) mod disentangled;
mod each;
pub(crate) mod elementwise;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod simd;

/// The elements of a contiguous tensor of f32 or bf16, borrowed.
pub(crate) struct Floats<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Floats<'a> {
    /// Borrows `tensor`, which must be contiguous on the CPU.
    pub(crate) fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if !matches!(tensor.dtype(), DType::F32 | DType::BF16) {
            let (what, found) = ("an operand", tensor.dtype());
            return Err(Error::Dtype { op, what, found, must_be: "f32 or bf16" });
        }
        if composes_on_cpu() {
            return Err(elsewhere(op));
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            let message = format!("`{op}`: a contiguous operand was expected");
            return Err(candle_core::Error::Msg(message).into());
        };
        let found = Self { storage, range: start..end };
        if found.elements().len() != end - start {
            return Err(elsewhere(op));
        }
        Ok(found)
    }

    /// The elements as they lie.
    pub(crate) fn elements(&self) -> Elements<'_> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => {
                Elements::F32(data.get(self.range.clone()).unwrap_or_default())
            }
            Storage::Cpu(CpuStorage::BF16(data)) => {
                Elements::Bf16(data.get(self.range.clone()).unwrap_or_default())
            }
            _ => Elements::F32(&[]),
        }
    }
}

/// The elements of a contiguous tensor in f32: borrowed where they are f32, widened where bf16.
pub(crate) enum F32<'a> {
    Borrowed(Floats<'a>),
    Widened(Vec<f32>),
}

impl<'a> F32<'a> {
    /// Those of `tensor`, which must be contiguous f32 or bf16 on the CPU.
    pub(crate) fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        let floats = Floats::of(op, tensor)?;
        let widened = match floats.elements() {
            Elements::Bf16(data) => Some(elementwise::widened(data)),
            _ => None,
        };
        Ok(widened.map_or(Self::Borrowed(floats), Self::Widened))
    }
}

impl Deref for F32<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Widened(data) => data,
            Self::Borrowed(floats) => match floats.elements() {
                Elements::F32(data) => data,
                _ => &[],
            },
        }
    }
}

/// New elements: f32, or rounded to bf16.
#[derive(Debug)]
pub(crate) enum Computed {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Computed {
    /// These as they are, or rounded.
    pub(crate) fn of(elements: Vec<f32>, narrow: bool) -> Self {
        match narrow {
            true => Self::Bf16(elementwise::narrowed(&elements)),
            false => Self::F32(elements),
        }
    }

    /// All of them in f32.
    pub(crate) fn wide(self) -> Vec<f32> {
        match self {
            Self::F32(elements) => elements,
            Self::Bf16(elements) => elementwise::widened(&elements),
        }
    }

    /// A new tensor of them.
    pub(crate) fn tensor(self, shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::F32(elements) => tensor(elements, shape),
            Self::Bf16(elements) => Ok(Tensor::from_vec(elements, shape, &Device::Cpu)?),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose_on_cpu;

    fn ramp(dtype: DType) -> Tensor {
        let ramp = Tensor::arange(0u32, 12, &Device::Cpu);
        ramp.and_then(|t| t.reshape((3, 4))?.to_dtype(dtype)).expect("a tensor")
    }

    fn message(found: Result<Floats<'_>>) -> String {
        found.err().expect("an error").to_string()
    }

    #[test]
    fn floats_are_those_of_f32_and_bf16_where_they_lie() {
        for dtype in [DType::F32, DType::BF16] {
            let whole = ramp(dtype);
            let rows = whole.narrow(0, 1, 2).expect("rows");
            let floats = Floats::of("op", &rows).expect("floats");
            let is_bf16 = matches!(floats.elements(), Elements::Bf16(_));
            assert_eq!(is_bf16, dtype == DType::BF16);
            let expected: Vec<f32> = (4u8..12).map(f32::from).collect();
            assert_eq!(floats.elements().wide(), expected.as_slice());
            assert_eq!(*F32::of("op", &rows).expect("f32"), expected);
        }
    }

    #[test]
    fn floats_of_other_dtypes_are_refused() {
        for found in [DType::F16, DType::F64, DType::U32, DType::U8, DType::I64] {
            let tensor = ramp(found);
            let named = |e: Option<Error>| {
                matches!(
                    e,
                    Some(Error::Dtype { op: "op", found: f, must_be: "f32 or bf16", .. })
                        if f == found
                )
            };
            assert!(named(Floats::of("op", &tensor).err()), "{found:?}");
            assert!(named(F32::of("op", &tensor).err()), "{found:?}");
        }
    }

    #[test]
    fn floats_that_lie_otherwise_or_elsewhere_are_refused() {
        for dtype in [DType::F32, DType::BF16] {
            let tensor = ramp(dtype);
            let turned = tensor.t().expect("the transpose");
            assert!(message(Floats::of("op", &turned)).contains("`op`: a contiguous operand"));
            compose_on_cpu(true);
            let found = message(Floats::of("op", &tensor));
            compose_on_cpu(false);
            assert!(found.contains("`op` has no version for this device"), "{found}");
        }
    }
}
