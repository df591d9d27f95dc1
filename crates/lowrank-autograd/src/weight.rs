//! Frozen weights: where they lie and how a kernel reads them.
//!
//! A weight stays in its file, in the file's dtype, mapped into memory; kernels widen what they
//! read to f32. `x·Wᵀ` and `dy·W` both read the one copy, also where a file stores the transpose
//! (GPT-2's Conv1D).

use std::{fmt, fs::File, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;

use crate::{Error, Result, kernels::F32};

/// A file mapped read-only.
pub struct MappedFile {
    map: Mmap,
    path: String,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Map`] when it can't be opened or mapped.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let shown = path.display().to_string();
        let map = File::open(path).and_then(|f| map(&f));
        match map {
            Ok(map) => Ok(Arc::new(Self { map, path: shown })),
            Err(source) => Err(Error::Map { path: shown, source }),
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private. A file that another process shortens while it
    // is mapped ends this one with a bus error; model folders are documented as not to be changed
    // under a running program.
    unsafe { Mmap::map(file) }
}

/// A frozen tensor of any shape. Cheap to clone.
#[derive(Clone)]
pub struct Weight {
    storage: Storage,
    shape: Vec<usize>,
    transposed: bool,
}

#[derive(Clone)]
enum Storage {
    Mapped { file: Arc<MappedFile>, start: usize, dtype: DType },
    Tensor(Tensor),
}

/// A weight's elements in the dtype in which they lie.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({:?} {:?})", self.dims(), self.dtype())
    }
}

impl Weight {
    /// `shape` elements of `dtype` from byte `start` of `file`. Bytes that aren't aligned for
    /// their dtype (older writers) are copied.
    ///
    /// # Errors
    /// [`Error::OutsideFile`]; [`Error::Dtype`] for other than f32, bf16 and f16.
    pub fn mapped(
        file: &Arc<MappedFile>,
        start: usize,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            let must_be = "f32, bf16 or f16";
            return Err(Error::Dtype { op: "weight", what: "the tensor", found: dtype, must_be });
        }
        let size = dtype.size_in_bytes();
        let end = shape
            .iter()
            .try_fold(size, |n, d| n.checked_mul(*d))
            .and_then(|n| n.checked_add(start))
            .unwrap_or(usize::MAX);
        let Some(bytes) = file.bytes().get(start..end) else {
            let len = file.bytes().len();
            return Err(Error::OutsideFile { path: file.path.clone(), start, end, len });
        };
        let storage = if bytes.as_ptr().addr().is_multiple_of(size) {
            Storage::Mapped { file: Arc::clone(file), start, dtype }
        } else {
            Storage::Tensor(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?)
        };
        Ok(Self { storage, shape: shape.to_vec(), transposed: false })
    }

    /// A weight held in memory.
    ///
    /// # Errors
    /// [`Error::Dtype`] for other than f32, bf16 and f16.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let found = tensor.dtype();
        if !matches!(found, DType::F32 | DType::BF16 | DType::F16) {
            let must_be = "f32, bf16 or f16";
            return Err(Error::Dtype { op: "weight", what: "the tensor", found, must_be });
        }
        let shape = tensor.dims().to_vec();
        Ok(Self { storage: Storage::Tensor(tensor.contiguous()?), shape, transposed: false })
    }

    /// The same memory read as the transposed matrix: `[in, out]` in the file, `[out, in]` here.
    pub fn transpose(mut self) -> Self {
        self.transposed = !self.transposed;
        self.shape.reverse();
        self
    }

    /// The shape as kernels see it: `[out, in]` for a linear layer.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// Whether memory holds the transpose of what [`Weight::dims`] says.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The dtype in which the elements lie.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Mapped { dtype, .. } => *dtype,
            Storage::Tensor(t) => t.dtype(),
        }
    }

    /// Rows and columns, with the strides of memory.
    pub(crate) fn matrix(&self, op: &'static str) -> Result<Matrix> {
        let &[rows, columns] = self.shape.as_slice() else {
            let must_be = "a matrix".to_owned();
            return Err(Error::Shape {
                op,
                what: "the weight",
                found: self.shape.clone(),
                must_be,
            });
        };
        let (row_stride, column_stride) = if self.transposed { (1, rows) } else { (columns, 1) };
        Ok(Matrix { rows, columns, row_stride, column_stride })
    }

    /// Calls `f` with the elements in memory order.
    pub(crate) fn with_elements<R>(&self, f: impl FnOnce(Elements<'_>) -> R) -> Result<R> {
        match &self.storage {
            Storage::Mapped { file, start, dtype } => {
                let end = start + self.elem_count() * dtype.size_in_bytes();
                let bytes = file.bytes().get(*start..end).unwrap_or_default();
                Ok(f(match dtype {
                    DType::BF16 => Elements::Bf16(cast(bytes)),
                    DType::F16 => Elements::F16(cast(bytes)),
                    _ => Elements::F32(cast(bytes)),
                }))
            }
            Storage::Tensor(t) => match t.dtype() {
                DType::F32 => Ok(f(Elements::F32(&F32::of("weight", t)?))),
                dtype => {
                    let (guard, layout) = t.storage_and_layout();
                    let range = layout.start_offset()..layout.start_offset() + t.elem_count();
                    let candle_core::Storage::Cpu(cpu) = &*guard else {
                        return Err(
                            candle_core::Error::Msg("a CPU weight was expected".into()).into()
                        );
                    };
                    Ok(match dtype {
                        DType::BF16 => {
                            f(Elements::Bf16(cpu.as_slice()?.get(range).unwrap_or_default()))
                        }
                        _ => f(Elements::F16(cpu.as_slice()?.get(range).unwrap_or_default())),
                    })
                }
            },
        }
    }

    /// A tensor of [`Weight::dims`] in the weight's own dtype; a copy if the weight is mapped.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut stored = self.shape.clone();
        if self.transposed {
            stored.reverse();
        }
        let tensor = match &self.storage {
            Storage::Tensor(t) => t.clone(),
            Storage::Mapped { file, start, dtype } => {
                let end = start + self.elem_count() * dtype.size_in_bytes();
                let bytes = file.bytes().get(*start..end).unwrap_or_default();
                Tensor::from_raw_buffer(bytes, *dtype, &stored, &Device::Cpu)?
            }
        };
        Ok(if self.transposed { tensor.t()? } else { tensor })
    }

    /// The same as f32.
    pub fn to_f32(&self) -> Result<Tensor> {
        Ok(self.to_tensor()?.to_dtype(DType::F32)?.contiguous()?)
    }
}

/// Shape and memory strides of a matrix, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

/// Marker for the element types whose every bit pattern is a value.
trait Plain {}
impl Plain for f32 {}
impl Plain for bf16 {}
impl Plain for f16 {}

#[expect(unsafe_code, reason = "mapped bytes are read as numbers without a copy")]
fn cast<T: Plain>(bytes: &[u8]) -> &[T] {
    // SAFETY: every bit pattern is a valid `T` (`Plain`), and `align_to` only yields whole, aligned
    // elements; `Weight::mapped` has checked that the start is aligned, so the ends are empty.
    let (before, elements, after) = unsafe { bytes.align_to::<T>() };
    debug_assert!(before.is_empty() && after.is_empty());
    elements
}
