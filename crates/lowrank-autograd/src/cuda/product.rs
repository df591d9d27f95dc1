//! Products by cuBLAS, whose sums are f32 in any case.

use std::ffi::{c_int, c_void};

use candle_core::{
    CudaDevice, DType, Tensor,
    cuda_backend::cudarc::cublas::{
        result,
        sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t},
    },
};

use super::{FLOATS, empty, gpu, plans, refused, start};
use crate::Result;

/// `factor·a·b` for matrices, or stacks of as many, with sums in f32 and the result in `dtype`. Both
/// are f32 or both bf16; only of these are there results in bf16.
pub(crate) fn matmul(a: &Tensor, b: &Tensor, factor: f32, dtype: DType) -> Result<Tensor> {
    let shape = [&a.dims()[..a.rank() - 1], &b.dims()[b.rank() - 1..]].concat();
    let y = empty(gpu(a)?, dtype, &shape)?;
    multiply(a, b, factor, &y, 0.0)?;
    Ok(y)
}

/// Adds `factor·a·b` to `sum` where it lies; nobody else may hold its memory.
pub(crate) fn add_product(sum: Tensor, a: &Tensor, b: &Tensor, factor: f32) -> Result<Tensor> {
    multiply(a, b, factor, &sum, 1.0)?;
    Ok(sum)
}

/// A matrix, or a stack of them, as cuBLAS is told of it, which reads column by column.
pub(super) struct Matrix {
    pub(super) address: u64,
    /// Whether it is bf16 and not f32.
    pub(super) narrow: bool,
    /// The distance of rows, or of columns if it is transposed, in elements.
    pub(super) leading: usize,
    /// The distance of matrices.
    pub(super) apart: usize,
    pub(super) transposed: bool,
}

/// Those of `batch` products of `[m, k]` and `[k, n]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Matrix {
    fn of(tensor: &Tensor) -> Result<Self> {
        let (strides, rank) = (tensor.stride(), tensor.rank());
        let [rows, columns] = [tensor.dim(rank - 2)?, tensor.dim(rank - 1)?];
        let [down, across] = [strides[rank - 2], strides[rank - 1]];
        let transposed = across != 1 && columns > 1;
        let (leading, least) = if transposed { (across, rows) } else { (down, columns) };
        if transposed && down != 1 && rows > 1 {
            return refused(format_args!("can't multiply {:?} at {strides:?}", tensor.shape()));
        }
        Ok(Self {
            address: start(tensor, FLOATS)?,
            narrow: tensor.dtype() == DType::BF16,
            leading: leading.max(least).max(1),
            apart: if rank > 2 { strides[0] } else { 0 },
            transposed,
        })
    }

    fn operation(&self) -> cublasOperation_t {
        match self.transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        }
    }

    fn dtype(&self) -> cudaDataType_t {
        match self.narrow {
            true => cudaDataType_t::CUDA_R_16BF,
            false => cudaDataType_t::CUDA_R_32F,
        }
    }
}

/// `y = factor·a·b + keep·y`.
fn multiply(a: &Tensor, b: &Tensor, factor: f32, y: &Tensor, keep: f32) -> Result<()> {
    let rank = a.rank();
    let (m, k, n) = (a.dim(rank - 2)?, a.dim(rank - 1)?, b.dim(b.rank() - 1)?);
    let batch = if rank > 2 { a.dim(0)? } else { 1 };
    let shapes = [&[batch, k, n][3 - rank.min(3)..], &[batch, m, n][3 - rank.min(3)..]];
    let matrices = [&Matrix::of(a)?, &Matrix::of(b)?, &Matrix::of(y)?];
    let fits = rank <= 3 && shapes == [b.dims(), y.dims()] && a.dtype() == b.dtype();
    if !fits || matrices[2].transposed {
        let (a, b, y) = (a.shape(), b.shape(), y.shape());
        return refused(format_args!("can't multiply {a:?} and {b:?} to {y:?} on the GPU"));
    }
    let (gpu, sizes, factors) = (gpu(a)?, Sizes { batch, m, n, k }, [factor, keep]);
    // SAFETY: addresses are those of tensors on this GPU, whose shapes were checked.
    unsafe {
        if !plans::multiply(gpu, sizes, matrices, factors)? {
            multiply_unplanned(gpu, sizes, matrices, factors)?;
        }
    }
    Ok(())
}

/// `y = factor·a·b + keep·y` by cuBLAS, which does what cuBLASLt doesn't.
///
/// # Safety
/// Addresses, sizes and strides are those of tensors on the GPU.
unsafe fn multiply_unplanned(
    gpu: &CudaDevice,
    sizes: Sizes,
    [a, b, y]: [&Matrix; 3],
    [factor, keep]: [f32; 2],
) -> candle_core::Result<()> {
    let int = |v: usize| v as c_int;
    let Sizes { batch, m, n, k } = sizes;
    let [factor, keep] = [&raw const factor, &raw const keep].map(|v| v.cast::<c_void>());
    // Row by row, `y = a·b` is what column by column is `yᵗ = bᵗ·aᵗ`.
    // SAFETY: the caller's promise; the factors are f32 as the sums are.
    unsafe {
        result::gemm_strided_batched_ex(
            *gpu.cublas_handle().handle(),
            b.operation(),
            a.operation(),
            int(n),
            int(m),
            int(k),
            factor,
            b.address as *const c_void,
            b.dtype(),
            int(b.leading),
            b.apart as i64,
            a.address as *const c_void,
            a.dtype(),
            int(a.leading),
            a.apart as i64,
            keep,
            y.address as *mut c_void,
            y.dtype(),
            int(y.leading),
            y.apart as i64,
            int(batch),
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .map_err(candle_core::Error::wrap)
}
