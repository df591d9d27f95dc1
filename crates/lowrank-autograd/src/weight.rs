//! Frozen weights: where they lie and how a kernel reads them.
//!
//! A weight stays in its file, in the file's dtype, mapped into memory; kernels widen what they
//! read to f32, or multiply bf16 as it is. `x·Wᵀ` and `dy·W` both read the one copy, also where a file stores the transpose
//! (GPT-2's Conv1D).

use std::{
    fmt,
    fs::File,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;

use crate::{
    Error, Result,
    elements::Elements,
    kernels::{F32, elementwise::narrowed},
};

/// A file mapped read-only.
pub struct MappedFile {
    map: Mmap,
    path: String,
    /// Where the weights begin whose pages are given back each time they have been read.
    passing_from: AtomicUsize,
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
            Ok(map) => {
                Ok(Arc::new(Self { map, path: shown, passing_from: AtomicUsize::new(usize::MAX) }))
            }
            Err(source) => Err(Error::Map { path: shown, source }),
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// From now on, gives the pages of weights that begin at this byte or behind it back to the
    /// system each time an operation has read one: of these, one at a time is resident. The system
    /// still caches the file, so that reading it again costs no more than finding the pages.
    pub fn release_after_reading(&self, from: usize) {
        self.passing_from.store(from, Ordering::Relaxed);
    }

    /// Says that these bytes won't be read soon, so that their pages needn't stay in memory.
    #[cfg_attr(unix, expect(unsafe_code, reason = "advice that may discard pages is unsafe"))]
    fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        // SAFETY: the mapping is read-only, so that pages that are discarded hold nothing but what
        // the file does, and are read from it again when they are touched.
        let advised = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, bytes.start, bytes.len())
        };
        #[cfg(unix)]
        drop(advised); // advice that isn't taken costs memory alone
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private. A file that another process shortens while it
    // is mapped ends this one with a bus error; model folders are documented as not to be changed
    // under a running program.
    let map = unsafe { Mmap::map(file) }?;
    // What is read in rows far apart wants few pages: what the system reads from now on it keeps in
    // large ones, where it can.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
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
    Mapped {
        file: Arc<MappedFile>,
        start: usize,
        dtype: DType,
    },
    Tensor(Tensor),
    /// Matrices of one shape and dtype, one below another.
    Stack(Arc<[Weight]>),
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
        check(dtype)?;
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
        check(tensor.dtype())?;
        let shape = tensor.dims().to_vec();
        Ok(Self { storage: Storage::Tensor(tensor.contiguous()?), shape, transposed: false })
    }

    /// Matrices of one shape and dtype, wherever each of them lies, as one tensor of `shape`, whose
    /// rows are theirs one below another.
    ///
    /// # Errors
    /// [`Error::Shape`] when they differ, or don't make up that shape; [`Error::Dtype`] when their
    /// dtypes differ.
    pub fn stacked(parts: Vec<Self>, shape: &[usize]) -> Result<Self> {
        const OP: &str = "stacked";
        let (dims, dtype) = parts.first().map(|p| (p.shape.clone(), p.dtype())).unzip();
        let fits = |part: &&Self| {
            part.shape.len() == 2 && !part.transposed && shape.last() == part.shape.last()
        };
        let alike = |part: &&Self| Some(&part.shape) == dims.as_ref() && fits(part);
        let elements: usize = parts.iter().map(Self::elem_count).sum();
        if !parts.iter().all(|p| alike(&p)) || elements != shape.iter().product::<usize>() {
            let must_be = format!("matrices of one shape that make up {shape:?}");
            let found = parts.iter().find(|p| !alike(p)).or(parts.first());
            let found = found.map(|p| p.shape.clone()).unwrap_or_default();
            return Err(Error::Shape { op: OP, what: "a part", found, must_be });
        }
        if let Some(other) = parts.iter().map(Self::dtype).find(|d| Some(*d) != dtype) {
            let must_be = "the dtype of the other parts";
            return Err(Error::Dtype { op: OP, what: "a part", found: other, must_be });
        }
        let storage = Storage::Stack(parts.into());
        Ok(Self { storage, shape: shape.to_vec(), transposed: false })
    }

    /// The same numbers in `dtype`, in memory of their own; what was mapped needn't stay there.
    ///
    /// # Errors
    /// [`Error::Dtype`] for other than f32, bf16 and f16.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        if let Storage::Stack(parts) = &self.storage {
            let parts = parts.iter().map(|p| p.to_dtype(dtype)).collect::<Result<_>>()?;
            return Self::stacked(parts, &self.shape);
        }
        let shape = self.stored_shape();
        let narrowed = match (self.device(), self.dtype(), dtype) {
            // Without a copy in between, for which there may be no room.
            (Device::Cpu, DType::F32, DType::BF16) => Some(self.narrowed()?),
            _ => None,
        };
        let tensor = match narrowed {
            Some(data) => Tensor::from_vec(data, shape, &Device::Cpu)?,
            None => self.as_stored()?.to_dtype(dtype)?,
        };
        self.release();
        let weight = Self::from_tensor(&tensor)?;
        Ok(if self.transposed { weight.transpose() } else { weight })
    }

    fn narrowed(&self) -> Result<Vec<bf16>> {
        self.with_elements(|elements| match elements {
            Elements::F32(data) => narrowed(data),
            Elements::Bf16(data) => data.to_vec(),
            Elements::F16(data) => data.iter().map(|v| bf16::from_f32(v.to_f32())).collect(),
        })
    }

    /// The device in whose memory it lies; what is mapped lies in the processor's.
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Mapped { .. } => Device::Cpu,
            Storage::Tensor(t) => t.device().clone(),
            Storage::Stack(parts) => parts.first().map_or(Device::Cpu, Self::device),
        }
    }

    /// The same numbers in the same dtype in a device's memory; nothing is copied if they lie there.
    ///
    /// # Errors
    /// Those of the device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.device().same_device(device) {
            return Ok(self.clone());
        }
        let storage = match &self.storage {
            Storage::Stack(parts) => {
                let parts = parts.iter().map(|part| part.to_device(device));
                Storage::Stack(parts.collect::<Result<_>>()?)
            }
            Storage::Tensor(_) | Storage::Mapped { .. } => {
                Storage::Tensor(self.as_stored()?.to_device(device)?)
            }
        };
        self.release();
        Ok(Self { storage, ..self.clone() })
    }

    /// Says of a mapped weight that it won't be read soon.
    fn release(&self) {
        if let Storage::Mapped { file, start, .. } = &self.storage {
            file.release(self.bytes(*start));
        }
    }

    /// The bytes of a weight that is mapped from byte `start` of its file on.
    fn bytes(&self, start: usize) -> Range<usize> {
        start..start + self.elem_count() * self.dtype().size_in_bytes()
    }

    /// The tensor of [`Weight::dims`] on a device, in its own dtype.
    pub(crate) fn on(&self, device: &Device) -> Result<Tensor> {
        Ok(self.to_tensor()?.to_device(device)?)
    }

    /// The same memory read as the transposed matrix: `[in, out]` in the file, `[out, in]` here.
    pub fn transpose(mut self) -> Self {
        self.transposed = !self.transposed;
        self.shape.reverse();
        self
    }

    /// The rows of `range` of a matrix that lies row by row, over the same memory. Rows of a tensor
    /// with more dimensions are counted through.
    ///
    /// # Errors
    /// [`Error::Shape`] when they don't lie so, aren't all there, or begin or end inside several
    /// parts of a stack.
    pub fn rows(&self, range: Range<usize>) -> Result<Self> {
        let wrong = || {
            let must_be = format!("a matrix that has rows {range:?} in order of memory");
            let (what, found) = ("the weight", self.shape.clone());
            Error::Shape { op: "rows", what, found, must_be }
        };
        let (rows, columns) = match self.shape.as_slice() {
            [leading @ .., columns] if !leading.is_empty() => {
                (leading.iter().product::<usize>(), *columns)
            }
            _ => return Err(wrong()),
        };
        if self.transposed || range.start > range.end || range.end > rows {
            return Err(wrong());
        }
        let shape = vec![range.len(), columns];
        let storage = match &self.storage {
            Storage::Mapped { file, start, dtype } => {
                let start = start + range.start * columns * dtype.size_in_bytes();
                Storage::Mapped { file: Arc::clone(file), start, dtype: *dtype }
            }
            Storage::Tensor(t) => {
                Storage::Tensor(t.reshape((rows, columns))?.narrow(0, range.start, range.len())?)
            }
            Storage::Stack(parts) => {
                let height = (rows / parts.len().max(1)).max(1);
                let (first, within) = (range.start / height, range.start % height);
                if within + range.len() <= height {
                    let part = parts.get(first).ok_or_else(wrong)?;
                    return part.rows(within..within + range.len());
                }
                if within != 0 || !range.len().is_multiple_of(height) {
                    return Err(wrong());
                }
                let last = first + range.len() / height;
                let parts = parts.get(first..last).ok_or_else(wrong)?;
                joined(parts).unwrap_or_else(|| Storage::Stack(parts.into()))
            }
        };
        Ok(Self { storage, shape, transposed: false })
    }

    /// The matrices of this weight, one below another, each in one piece of memory.
    pub(crate) fn pieces(&self) -> Vec<Self> {
        match &self.storage {
            Storage::Stack(parts) => parts.to_vec(),
            Storage::Tensor(_) | Storage::Mapped { .. } => vec![self.clone()],
        }
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
            Storage::Stack(parts) => parts.first().map_or(DType::F32, Self::dtype),
        }
    }

    /// Rows and columns, with the strides of memory.
    pub(crate) fn matrix(&self, op: &'static str) -> Result<Matrix> {
        let &[rows, columns] = self.shape.as_slice() else {
            let must_be = "a matrix".to_owned();
            let (what, found) = ("the weight", self.shape.clone());
            return Err(Error::Shape { op, what, found, must_be });
        };
        let (row_stride, column_stride) = if self.transposed { (1, rows) } else { (columns, 1) };
        Ok(Matrix { rows, columns, row_stride, column_stride })
    }

    /// Calls `f` with the elements in memory order; those of a stack are copied for it.
    pub(crate) fn with_elements<R>(&self, f: impl FnOnce(Elements<'_>) -> R) -> Result<R> {
        match &self.storage {
            Storage::Stack(_) => Self::from_tensor(&self.as_stored()?)?.with_elements(f),
            Storage::Mapped { file, start, dtype } => {
                let bytes = file.bytes().get(self.bytes(*start)).unwrap_or_default();
                let found = f(match dtype {
                    DType::BF16 => Elements::Bf16(cast(bytes)),
                    DType::F16 => Elements::F16(cast(bytes)),
                    _ => Elements::F32(cast(bytes)),
                });
                if *start >= file.passing_from.load(Ordering::Relaxed) {
                    self.release();
                }
                Ok(found)
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
        let tensor = self.as_stored()?;
        Ok(if self.transposed { tensor.t()? } else { tensor })
    }

    /// The shape as memory has it.
    fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// The tensor as it lies in memory.
    fn as_stored(&self) -> Result<Tensor> {
        match &self.storage {
            Storage::Tensor(t) => Ok(t.clone()),
            Storage::Stack(parts) => {
                let parts: Vec<Tensor> =
                    parts.iter().map(Self::as_stored).collect::<Result<_>>()?;
                Ok(Tensor::cat(&parts, 0)?.reshape(self.shape.as_slice())?)
            }
            Storage::Mapped { file, start, dtype } => {
                let bytes = file.bytes().get(self.bytes(*start)).unwrap_or_default();
                Ok(Tensor::from_raw_buffer(bytes, *dtype, &self.stored_shape(), &Device::Cpu)?)
            }
        }
    }

    /// The same as f32.
    pub fn to_f32(&self) -> Result<Tensor> {
        Ok(self.to_tensor()?.to_dtype(DType::F32)?.contiguous()?)
    }
}

fn check(found: DType) -> Result<()> {
    let (op, what, must_be) = ("weight", "the tensor", "f32, bf16 or f16");
    match found {
        DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        _ => Err(Error::Dtype { op, what, found, must_be }),
    }
}

/// Parts of one dtype that follow each other in a file, as one.
fn joined(parts: &[Weight]) -> Option<Storage> {
    let all = parts.first()?.storage.clone();
    let Storage::Mapped { file, start, .. } = &all else { return None };
    let mut next = *start;
    let follows = |part: &Weight| {
        let Storage::Mapped { file: of, start, .. } = &part.storage else { return false };
        let fits = Arc::ptr_eq(of, file) && *start == next;
        next = part.bytes(*start).end;
        fits
    };
    parts.iter().all(follows).then_some(all)
}

/// Shape and memory strides of a matrix, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl Matrix {
    /// The transpose, over the same memory.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
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
