//! Products by cuBLASLt, which lets a program keep what it found out about a shape: cuBLAS itself
//! chooses anew in every call, which takes longer than the products of a small model.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    ptr,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CudaDevice,
    cuda_backend::{
        DeviceId,
        cudarc::{
            cublas::sys::cublasOperation_t,
            cublaslt::{
                result::{self, CublasError},
                sys::{
                    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
                    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as OfProduct,
                    cublasLtMatmulPreferenceAttributes_t as Wish, cublasLtMatrixLayout_t,
                    cublasLtMatrixLayoutAttribute_t as OfMatrix, cudaDataType,
                },
            },
            driver::{CudaSlice, DevicePtr},
        },
    },
};

use super::product::{Matrix, Sizes};
use crate::Result;

/// What products may use beside their operands, in bytes: NVIDIA's advice for its largest GPUs.
const WORKSPACE: usize = 32 << 20;
/// Most plans at a time; sequences of many lengths need as many.
const PLANS: usize = 1 << 13;
/// The alignment of addresses beyond which it makes no difference.
const ALIGNED: u64 = 256;

/// The library on one GPU.
struct Library {
    handle: cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    /// `None` for what it can't do.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: a handle and descriptors may be used from any thread, one at a time.
unsafe impl Send for Library {}

static LIBRARIES: Mutex<Vec<(DeviceId, Library)>> = Mutex::new(Vec::new());

/// All that a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: Sizes,
    sides: [Side; 3],
}

/// How a matrix lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Side {
    narrow: bool,
    transposed: bool,
    leading: usize,
    apart: usize,
    alignment: u32,
}

impl Side {
    fn of(matrix: &Matrix) -> Self {
        let alignment = (1 << matrix.address.trailing_zeros().min(63)).min(ALIGNED) as u32;
        let &Matrix { narrow, transposed, leading, apart, .. } = matrix;
        Self { narrow, transposed, leading, apart, alignment }
    }
}

/// A product as the library knows it.
struct Plan {
    product: cublasLtMatmulDesc_t,
    /// Of the first and second factor as the library counts them, and of the result.
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: they were made for this plan, and nothing else has them.
        let freed = unsafe {
            let layouts = self.layouts.map(|layout| result::destroy_matrix_layout(layout));
            layouts.into_iter().chain([result::destroy_matmul_desc(self.product)])
        };
        debug_assert!(freed.into_iter().all(|freed| freed.is_ok()), "descriptors are freed");
    }
}

/// `y = factor·a·b + keep·y`; whether the library can do it.
///
/// # Safety
/// Addresses, sizes and strides are those of tensors on the GPU.
pub(super) unsafe fn multiply(
    gpu: &CudaDevice,
    sizes: Sizes,
    [a, b, y]: [&Matrix; 3],
    [factor, keep]: [f32; 2],
) -> Result<bool> {
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = Library::on(gpu, &mut libraries)?;
    // Row by row, `y = a·b` is what column by column is `yᵗ = bᵗ·aᵗ`.
    let key = Key { sizes, sides: [b, a, y].map(Side::of) };
    let stream = gpu.cuda_stream();
    let (handle, workspace) = (library.handle, library.workspace.device_ptr(&stream).0);
    let Some(plan) = library.plan(key) else { return Ok(false) };
    let [factor, keep] = [&raw const factor, &raw const keep].map(|v| v.cast::<c_void>());
    let [first, second] = [b, a].map(|m| m.address as *const c_void);
    let place = y.address as *mut c_void;
    let [first_layout, second_layout, layout] = plan.layouts;
    // SAFETY: the caller's promise; the plan is that of these operands, and the workspace as large
    // as it was told.
    unsafe {
        result::matmul(
            handle,
            plan.product,
            factor,
            keep,
            first,
            first_layout,
            second,
            second_layout,
            place,
            layout,
            place,
            layout,
            &raw const plan.algorithm,
            workspace as *mut c_void,
            WORKSPACE,
            stream.cu_stream().cast(),
        )
    }
    .map_err(candle_core::Error::wrap)?;
    Ok(true)
}

impl Library {
    /// That of a GPU, opened at its first product.
    fn on<'a>(
        gpu: &CudaDevice,
        known: &'a mut Vec<(DeviceId, Self)>,
    ) -> candle_core::Result<&'a mut Self> {
        let at = match known.iter().position(|(id, _)| *id == gpu.id()) {
            Some(at) => at,
            None => {
                let handle = result::create_handle().map_err(candle_core::Error::wrap)?;
                // SAFETY: nobody reads it but the library, which writes it first.
                let workspace = unsafe { gpu.alloc::<u8>(WORKSPACE)? };
                known.push((gpu.id(), Self { handle, workspace, plans: HashMap::new() }));
                known.len() - 1
            }
        };
        Ok(&mut known[at].1)
    }

    /// The plan of a product.
    fn plan(&mut self, key: Key) -> Option<&Plan> {
        if self.plans.len() >= PLANS && !self.plans.contains_key(&key) {
            self.plans.clear();
        }
        match self.plans.entry(key) {
            Entry::Occupied(found) => found.into_mut(),
            // SAFETY: the handle is open.
            Entry::Vacant(place) => place.insert(unsafe { planned(self.handle, key) }.ok()),
        }
        .as_ref()
    }
}

/// Asks the library for its choice.
///
/// # Safety
/// The handle is open.
unsafe fn planned(handle: cublasLtHandle_t, key: Key) -> std::result::Result<Plan, CublasError> {
    let Sizes { batch, m, n, k } = key.sizes;
    let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let mut plan = Plan {
        product: result::create_matmul_desc(compute, cudaDataType::CUDA_R_32F)?,
        layouts: [ptr::null_mut(); 3],
        algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
    };
    let shapes = [(n, k), (k, m), (n, m)];
    for ((layout, side), (rows, columns)) in plan.layouts.iter_mut().zip(key.sides).zip(shapes) {
        let (rows, columns) = if side.transposed { (columns, rows) } else { (rows, columns) };
        let dtype = if side.narrow { cudaDataType::CUDA_R_16BF } else { cudaDataType::CUDA_R_32F };
        let leading = side.leading as i64;
        *layout = result::create_matrix_layout(dtype, rows as u64, columns as u64, leading)?;
        let (count, apart) = (batch as i32, side.apart as i64);
        // SAFETY: the layout was just made; the attributes are an i32 and an i64.
        unsafe {
            let set = |attribute, value: *const c_void, size| {
                result::set_matrix_layout_attribute(*layout, attribute, value, size)
            };
            let [of_count, of_apart] = [
                OfMatrix::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                OfMatrix::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
            ];
            set(of_count, (&raw const count).cast(), size_of_val(&count))?;
            set(of_apart, (&raw const apart).cast(), size_of_val(&apart))?;
        }
    }
    let turns = [OfProduct::CUBLASLT_MATMUL_DESC_TRANSA, OfProduct::CUBLASLT_MATMUL_DESC_TRANSB];
    for (attribute, side) in turns.into_iter().zip(key.sides) {
        let turned = match side.transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        } as i32;
        let (value, size) = ((&raw const turned).cast(), size_of_val(&turned));
        // SAFETY: the descriptor was just made; the attribute is an i32.
        unsafe { result::set_matmul_desc_attribute(plan.product, attribute, value, size) }?;
    }
    // SAFETY: the handle is open by the caller's promise, and the plan's parts are there.
    plan.algorithm = unsafe { chosen(handle, &plan, key.sides) }?;
    Ok(plan)
}

/// The algorithm that the library holds to be the fastest.
///
/// # Safety
/// The handle is open, and the plan has its descriptors.
unsafe fn chosen(
    handle: cublasLtHandle_t,
    plan: &Plan,
    [first, second, y]: [Side; 3],
) -> std::result::Result<cublasLtMatmulAlgo_t, CublasError> {
    let wishes = result::create_matmul_pref()?;
    let alignments = [
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first.alignment),
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second.alignment),
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y.alignment),
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y.alignment),
    ];
    let most = (Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64);
    // SAFETY: wishes were just made; alignments are u32, the workspace's size is a u64. The caller
    // promises the rest.
    unsafe {
        let set = |wish, value: *const c_void, size| {
            result::set_matmul_pref_attribute(wishes, wish, value, size)
        };
        let workspace = set(most.0, (&raw const most.1).cast(), size_of_val(&most.1));
        let set_all = alignments.iter().fold(workspace, |before, (wish, bytes)| {
            before.and_then(|()| set(*wish, ptr::from_ref(bytes).cast(), size_of_val(bytes)))
        });
        let [first, second, y] = plan.layouts;
        let (product, layouts) = (plan.product, (first, second, y));
        let found = set_all.and_then(|()| {
            let (first, second, y) = layouts;
            result::get_matmul_algo_heuristic(handle, product, first, second, y, y, wishes)
        });
        result::destroy_matmul_pref(wishes)?;
        found.map(|found| found.algo)
    }
}
