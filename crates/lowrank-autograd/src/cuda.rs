//! Kernels of our own for NVIDIA GPUs, where candle would compose an operation of many; what they
//! compute is in cuda/kernels.cu and cuda/attention. A [`Module`] of them is compiled when the
//! first of its kernels runs.
//!
//! All work goes to one stream, in the order in which it is asked for: memory that a tensor gives
//! back is used again only by what comes later, and nothing has to wait for anything.

#![expect(unsafe_code, reason = "kernels and products are C functions that take addresses")]

use std::{
    ffi::c_void,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Storage, Tensor,
    cuda_backend::{
        CudaStorageSlice, DeviceId,
        cudarc::{
            driver::{
                CudaFunction, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, result,
                sys::{CUmemPool_attribute, CUmemoryPool},
            },
            nvrtc::{self, CompileOptions},
        },
    },
    op::BackpropOp,
};
use half::bf16;

use crate::Result;

mod attention;
mod elementwise;
mod plans;
mod product;
mod rows;

pub(crate) use attention::{attention, attention_backward, takes_in_tiles};
pub(crate) use elementwise::{
    added, by_head, by_row, dropout, gated, gated_backward, rotary, square_sum, update,
};
pub(crate) use product::{add_product, matmul};
pub(crate) use rows::{cross_entropy, normalize, normalize_backward, softmax, softmax_backward};

/// Threads of a block of [`launch`].
const THREADS: u32 = 256;

/// Opens the GPU of this number: with one stream for all threads, without events, which keep several
/// streams apart, and with freed memory kept for the next tensor.
pub(crate) fn open(number: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    let gpu = device.as_cuda_device()?;
    // SAFETY: there is no other stream.
    unsafe { gpu.disable_event_tracking() };
    let stream = gpu.cuda_stream();
    // SAFETY: the device is the context's.
    let pool = unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) };
    let pool = pool.map_err(candle_core::Error::wrap)?;
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's, and the attribute a u64.
    unsafe { result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast::<c_void>()) }
        .map_err(candle_core::Error::wrap)?;
    POOL.get_or_init(|| Pool(pool));
    Ok(device)
}

/// Where the memory of tensors on the GPU comes from.
struct Pool(CUmemoryPool);

// SAFETY: the driver's functions on pools may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

static POOL: OnceLock<Pool> = OnceLock::new();

impl Pool {
    /// A size in bytes.
    fn read(&self, attribute: CUmemPool_attribute) -> candle_core::Result<u64> {
        let mut bytes = 0_u64;
        // SAFETY: the pool is the device's, and the attribute a u64.
        unsafe {
            result::mem_pool::get_attribute(self.0, attribute, (&raw mut bytes).cast::<c_void>())
        }
        .map_err(candle_core::Error::wrap)?;
        Ok(bytes)
    }

    /// The most bytes that tensors took.
    fn used(&self) -> candle_core::Result<u64> {
        self.read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }
}

/// The most bytes that tensors took on the GPU, and the most that were kept for them.
pub(crate) fn memory() -> Option<[u64; 2]> {
    let pool = POOL.get()?;
    let kept = pool.read(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH).ok()?;
    Some([pool.used().ok()?, kept])
}

/// The GPU that a tensor lies on.
fn gpu(tensor: &Tensor) -> Result<&CudaDevice> {
    Ok(tensor.device().as_cuda_device()?)
}

/// An error of what a kernel was to be handed.
fn refused<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(candle_core::Error::msg(what).into())
}

/// What a kernel is handed.
#[derive(Clone, Copy)]
enum Argument {
    Address(u64),
    Long(i64),
    Word(u64),
    Int(i32),
    Float(f32),
    Unsigned(u32),
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self::Float(number)
    }
}

impl From<usize> for Argument {
    /// A dimension or a place in it: none reaches 2³¹.
    fn from(number: usize) -> Self {
        Self::Int(number as i32)
    }
}

impl From<bool> for Argument {
    fn from(yes: bool) -> Self {
        Self::Int(yes.into())
    }
}

/// The address of the first element of a tensor that lies row by row on a GPU; `dtypes` are those
/// that the kernel knows.
fn address(tensor: &Tensor, dtypes: &[DType]) -> Result<u64> {
    if !tensor.is_contiguous() {
        let (shape, strides) = (tensor.shape(), tensor.stride());
        return refused(format_args!("a kernel of the GPU can't read {shape:?} at {strides:?}"));
    }
    start(tensor, dtypes)
}

/// [`address`] of a tensor however it lies.
fn start(tensor: &Tensor, dtypes: &[DType]) -> Result<u64> {
    if !dtypes.contains(&tensor.dtype()) {
        let found = tensor.dtype();
        return refused(format_args!("a kernel of the GPU takes {dtypes:?}, not {found:?}"));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return refused(format_args!(
            "a kernel of the GPU was handed a tensor of {:?}",
            tensor.device()
        ));
    };
    fn start<T>(slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(slice.stream()).0
    }
    let start = match &storage.slice {
        CudaStorageSlice::U32(slice) => start(slice),
        CudaStorageSlice::I64(slice) => start(slice),
        CudaStorageSlice::BF16(slice) => start(slice),
        CudaStorageSlice::F32(slice) => start(slice),
        CudaStorageSlice::F64(slice) => start(slice),
        _ => return refused(format_args!("no kernel of the GPU reads {:?}", tensor.dtype())),
    };
    Ok(start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

const F32: &[DType] = &[DType::F32];
const FLOATS: &[DType] = &[DType::F32, DType::BF16];

/// An argument that is a tensor of f32.
fn f32s(tensor: &Tensor) -> Result<Argument> {
    Ok(Argument::Address(address(tensor, F32)?))
}

/// An argument that is a tensor of f32 or bf16, and whether it is bf16.
fn floats(tensor: &Tensor) -> Result<(Argument, Argument)> {
    Ok((Argument::Address(address(tensor, FLOATS)?), (tensor.dtype() == DType::BF16).into()))
}

/// An argument that may be missing: then it is no address.
fn maybe<T>(found: Option<T>, argument: impl FnOnce(T) -> Result<Argument>) -> Result<Argument> {
    found.map_or(Ok(Argument::Address(0)), argument)
}

/// [`floats`] of a tensor that may be missing: then it is no address.
fn maybe_floats(tensor: Option<&Tensor>) -> Result<(Argument, Argument)> {
    tensor.map_or(Ok((Argument::Address(0), false.into())), floats)
}

/// A tensor whose elements a kernel is going to write.
fn empty(gpu: &CudaDevice, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let len = shape.iter().product();
    // SAFETY: every kernel writes all elements of what it is handed to write.
    let storage = unsafe {
        match dtype {
            DType::BF16 => CudaStorage::wrap_cuda_slice(gpu.alloc::<bf16>(len)?, gpu.clone()),
            DType::F64 => CudaStorage::wrap_cuda_slice(gpu.alloc::<f64>(len)?, gpu.clone()),
            _ => CudaStorage::wrap_cuda_slice(gpu.alloc::<f32>(len)?, gpu.clone()),
        }
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// Kernels that are compiled together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Module {
    /// Those that any operand suits.
    Any,
    /// Those of attention in tiles.
    Attention(attention::Version),
}

impl Module {
    /// What it is called where several are.
    fn name(self) -> String {
        match self {
            Self::Any => "lowrank".to_owned(),
            Self::Attention(version) => version.name(),
        }
    }

    /// Its kernels, compiled for any GPU; the driver makes them the GPU's own.
    fn code(self) -> Result<Arc<str>> {
        static KNOWN: Mutex<Vec<(Module, Arc<str>)>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, code)) = known.iter().find(|(module, _)| *module == self) {
            return Ok(Arc::clone(code));
        }
        let (source, options) = match self {
            Self::Any => (include_str!("cuda/kernels.cu"), CompileOptions::default()),
            Self::Attention(version) => (attention::SOURCE, version.options()),
        };
        let compiled = nvrtc::compile_ptx_with_opts(source, options);
        let failed = |error| candle_core::Error::msg(format!("{}: {error}", self.name()));
        let code = Arc::from(compiled.map_err(failed)?.to_src());
        known.push((self, Arc::clone(&code)));
        Ok(code)
    }
}

/// A kernel on a GPU. The driver is asked once: it looks for a name among all of them.
fn function(gpu: &CudaDevice, module: Module, name: &'static str) -> Result<CudaFunction> {
    type Known = (DeviceId, Module, &'static str, CudaFunction);
    static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = (gpu.id(), module, name);
    let found = known.iter().find(|(id, module, name, _)| (*id, *module, *name) == wanted);
    if let Some((.., function)) = found {
        return Ok(function.clone());
    }
    let function = gpu.get_or_load_custom_func(name, &module.name(), &module.code()?)?;
    let function = function.into_cuda_function();
    known.push((gpu.id(), module, name, function.clone()));
    Ok(function)
}

/// `blocks` blocks in a row of as many threads and bytes of shared memory.
fn grid(name: &str, blocks: usize, threads: u32, shared: u32) -> Result<LaunchConfig> {
    let Ok(blocks) = u32::try_from(blocks) else {
        return refused(format_args!("{name}: {blocks} blocks are more than a GPU runs at a time"));
    };
    let (grid_dim, block_dim) = ((blocks, 1, 1), (threads, 1, 1));
    Ok(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: shared })
}

/// Runs a kernel in `blocks` blocks of `THREADS` threads.
///
/// # Safety
/// `arguments` are the kernel's, in number and types, and the kernel touches no memory but that of
/// the tensors whose addresses are among them.
unsafe fn launch(
    gpu: &CudaDevice,
    name: &'static str,
    blocks: usize,
    arguments: &[Argument],
) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let config = grid(name, blocks, THREADS, 0)?;
    let function = function(gpu, Module::Any, name)?;
    let stream = gpu.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    for argument in arguments {
        match argument {
            Argument::Address(v) | Argument::Word(v) => launch.arg(v),
            Argument::Long(v) => launch.arg(v),
            Argument::Int(v) => launch.arg(v),
            Argument::Float(v) => launch.arg(v),
            Argument::Unsigned(v) => launch.arg(v),
        };
    }
    // SAFETY: the caller's promise.
    unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
    Ok(())
}

/// Blocks with a thread for each of `n` elements.
fn blocks(n: usize) -> usize {
    n.div_ceil(THREADS as usize)
}
