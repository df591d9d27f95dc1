//! Products by cuBLAS: f32 from f32, or from bf16 with f32 sums that are never rounded.

use std::ffi::{c_int, c_void};

use candle_core::{
    DType, Tensor,
    cuda_backend::cudarc::cublas::{
        result,
        sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t},
    },
};

use super::{F32, FLOATS, address, empty, gpu, refused};
use crate::Result;

/// `factor·a·b` for matrices, or stacks of as many, in f32. Both are f32 or both bf16, each lying row by row
/// or column by column.
pub(crate) fn matmul(a: &Tensor, b: &Tensor, factor: f32) -> Result<Tensor> {
    let shape = [&a.dims()[..a.rank() - 1], &b.dims()[b.rank() - 1..]].concat();
    let y = empty(gpu(a)?, DType::F32, &shape)?;
    multiply(a, b, factor, &y, 0.0)?;
    Ok(y)
}

/// Adds `factor·a·b` to `sum` where it lies; nobody else may hold its memory.
pub(crate) fn add_product(sum: Tensor, a: &Tensor, b: &Tensor, factor: f32) -> Result<Tensor> {
    multiply(a, b, factor, &sum, 1.0)?;
    Ok(sum)
}

/// A factor as cuBLAS is told of it, which reads matrices column by column: the address, the length
/// of what lies together, and whether it has to be transposed.
struct Factor {
    address: u64,
    leading: c_int,
    operation: cublasOperation_t,
}

impl Factor {
    fn of(tensor: &Tensor) -> Result<Self> {
        let rank = tensor.rank();
        let turned = !tensor.is_contiguous();
        let as_it_lies =
            if turned { tensor.transpose(rank - 2, rank - 1)? } else { tensor.clone() };
        let operation = match turned {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        };
        let leading = as_it_lies.dim(rank - 1)?.max(1) as c_int;
        Ok(Self { address: address(&as_it_lies, FLOATS)?, leading, operation })
    }
}

/// `y = factor·a·b + keep·y`.
fn multiply(a: &Tensor, b: &Tensor, factor: f32, y: &Tensor, keep: f32) -> Result<()> {
    let rank = a.rank();
    let (m, k, n) = (a.dim(rank - 2)?, a.dim(rank - 1)?, b.dim(rank - 1)?);
    let batch = a.elem_count() / (m * k).max(1);
    let fits = [(b.rank(), rank), (b.dim(rank - 2)?, k), (b.elem_count(), batch * k * n)];
    if a.dtype() != b.dtype() || fits.iter().any(|(found, needed)| found != needed) {
        return refused(format_args!(
            "can't multiply {:?} and {:?} on the GPU",
            a.shape(),
            b.shape()
        ));
    }
    let dtype = match a.dtype() {
        DType::BF16 => cudaDataType_t::CUDA_R_16BF,
        _ => cudaDataType_t::CUDA_R_32F,
    };
    let (left, right, place) = (Factor::of(a)?, Factor::of(b)?, address(y, F32)?);
    let strides = [k * n, m * k, m * n].map(|v| v as i64);
    let (handle, [m, n, k]) = (gpu(a)?.cublas_handle(), [m, n, k].map(|v| v as c_int));
    // Row by row, `y = a·b` is what column by column is `yᵗ = bᵗ·aᵗ`.
    // SAFETY: addresses are those of tensors on this GPU, whose shapes were checked; alpha and beta
    // are f32 as the sums are.
    unsafe {
        result::gemm_strided_batched_ex(
            *handle.handle(),
            right.operation,
            left.operation,
            n,
            m,
            k,
            (&raw const factor).cast::<c_void>(),
            right.address as *const c_void,
            dtype,
            right.leading,
            strides[0],
            left.address as *const c_void,
            dtype,
            left.leading,
            strides[1],
            (&raw const keep).cast::<c_void>(),
            place as *mut c_void,
            cudaDataType_t::CUDA_R_32F,
            n,
            strides[2],
            batch as c_int,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .map_err(candle_core::Error::wrap)?;
    Ok(())
}
