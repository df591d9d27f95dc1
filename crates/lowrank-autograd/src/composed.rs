//! Operations composed of candle's, forward and backward, for devices that none of our kernels
//! reads: one file for each operation, which branches here where an operand lies on such a device.
//!
//! They are the same operations on the same tape, with the same masks, so that the processor runs
//! them too, and tests compare them with the kernels there ([`compose_on_cpu`]). Elementwise functions
//! make tensors of their intermediate results, unless `on_gpu!` finds a kernel of `cuda` for the whole.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

use crate::{Dropout, Result, Value, Weight, kept::Kept};

/// Returns what a kernel of [`cuda`](crate::cuda) computes, if the tensor lies on a GPU.
macro_rules! on_gpu {
    ($tensor:expr, $($kernel:tt)+) => {
        #[cfg(feature = "cuda")]
        if $tensor.device().is_cuda() {
            return crate::cuda::$($kernel)+;
        }
    };
}

mod activation;
mod adamw;
mod arithmetic;
mod attention;
mod cached;
mod cross_entropy;
mod disentangled;
mod dropout;
mod embedding;
mod few;
mod grouped_linear;
mod join_columns;
mod linear;
mod loss;
mod mix_rows;
mod norm;
mod rotary;
mod rows;

pub(crate) use activation::{activation, gated, gated_halves};
pub(crate) use adamw::update;
pub(crate) use arithmetic::{
    add, add_row, added, clip, mul, scale, scaled, shift, square_sum, sum_all,
};
pub(crate) use attention::attention;
pub(crate) use cached::{Cache, attention_cached};
pub(crate) use cross_entropy::{linear_cross_entropy, scored_cross_entropy};
pub(crate) use disentangled::{Setting as Disentangled, disentangled_attention};
pub(crate) use dropout::{dropout, jitter};
pub(crate) use embedding::embedding;
pub(crate) use few::{balance, route};
pub(crate) use grouped_linear::grouped_linear;
pub(crate) use join_columns::join_columns;
pub(crate) use linear::linear;
pub(crate) use loss::{binary_cross_entropy, squared_error};
pub(crate) use mix_rows::mix_rows;
pub(crate) use norm::normalize;
pub(crate) use rotary::rotary;
pub(crate) use rows::{columns, select_rows};

thread_local! {
    static ON_CPU: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread composes its operations on the processor too, where a kernel then refuses
/// its operands as it would those of a GPU. For tests of what a GPU runs where there is none.
pub fn compose_on_cpu(on: bool) {
    ON_CPU.set(on);
}

pub(crate) fn composes_on_cpu() -> bool {
    ON_CPU.get()
}

/// What `f` returns, computed by kernels on copies in the processor's memory.
fn by_kernels<R>(f: impl FnOnce() -> R) -> R {
    let before = ON_CPU.replace(false);
    let found = f();
    ON_CPU.set(before);
    found
}

/// The device on which an operation on these operands has to be composed, if it is one: that of
/// the first that doesn't lie in the processor's memory. Others are copied there.
pub(crate) fn device<'a>(operands: impl IntoIterator<Item = &'a Tensor>) -> Option<Device> {
    let found = operands.into_iter().map(Tensor::device).find(|device| !device.is_cpu());
    found.cloned().or_else(|| composes_on_cpu().then_some(Device::Cpu))
}

/// [`device`] of an operation that reads a weight.
pub(crate) fn device_with<'a>(
    weight: &Weight,
    operands: impl IntoIterator<Item = &'a Tensor>,
) -> Option<Device> {
    match weight.device() {
        Device::Cpu => device(operands),
        other => Some(other),
    }
}

/// A tensor on the device, row by row.
fn on(device: &Device, tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.contiguous()?.to_device(device)?)
}

/// A value's tensor on the device, row by row, in f32 or bf16.
fn floats(device: &Device, value: &Value) -> Result<Tensor> {
    on(device, value.data())
}

/// A value's tensor on the device, row by row, in f32.
fn data(device: &Device, value: &Value) -> Result<Tensor> {
    Ok(wide(&floats(device, value)?)?)
}

/// A value's tensor on the device, row by row, as a product with others of `dtype` reads it.
fn factor(device: &Device, value: &Value, dtype: DType) -> Result<Tensor> {
    let data = floats(device, value)?;
    match dtype {
        DType::BF16 => Ok(Kept::composed(value, &data).into_tensor()),
        _ => Ok(wide(&data)?),
    }
}

/// The same numbers in f32.
fn wide(x: &Tensor) -> candle_core::Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// `x·w` in `dtype`, where `w` may be bf16: then the product is one of bf16 numbers, whose sums are
/// f32. f16 hasn't the range of `x` and is widened.
fn product(x: &Tensor, w: &Tensor, dtype: DType) -> Result<Tensor> {
    match w.dtype() {
        DType::BF16 => matmul_in(dtype, &x.to_dtype(DType::BF16)?, w, 1.0),
        _ => matmul_in(dtype, &wide(x)?, &wide(w)?, 1.0),
    }
}

/// `scale·a·b` in f32, where both are f32 or both bf16.
fn matmul(a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    matmul_in(DType::F32, a, b, scale)
}

/// [`matmul`] whose sums are rounded to `dtype`; f32, or bf16 if the factors are.
fn matmul_in(dtype: DType, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    on_gpu!(a, matmul(a, b, scale, dtype));
    let rows = |t: &Tensor| wide(t)?.contiguous();
    Ok((rows(a)?.matmul(&rows(b)?)? * f64::from(scale))?.to_dtype(dtype)?)
}

/// Whether the backward pass of an operation takes the gradient of its result in bf16 too. Others are
/// handed f32, when they are composed.
pub(crate) fn reads_narrow(op: &str) -> bool {
    matches!(op, "linear" | "attention" | "rotary" | "gated" | "activation")
}

/// `sum + scale·a·b`, of f32; nobody else may hold the memory of `sum`.
fn add_product(sum: Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    on_gpu!(a, add_product(sum, a, b, scale));
    Ok((sum + matmul(a, b, scale)?)?)
}

/// Numbers of rows or columns as a tensor that selects them.
fn places(device: &Device, places: impl IntoIterator<Item = usize>) -> Result<Tensor> {
    let places: Vec<u32> = places.into_iter().map(|place| place as u32).collect();
    let len = places.len();
    Ok(Tensor::from_vec(places, len, device)?)
}

/// The factors of a mask, `[rows, columns]`: made by the processor, so that they are the same
/// everywhere.
fn factors(device: &Device, mask: &Dropout, rows: usize, columns: usize) -> Result<Tensor> {
    let factors = mask.apply(&vec![1.0; rows * columns], columns);
    Ok(Tensor::from_vec(factors, (rows, columns), device)?)
}

/// `x` with its mask applied, if there is one.
fn masked(x: &Tensor, mask: Option<&Dropout>) -> Result<Tensor> {
    let Some(mask) = mask else { return Ok(x.clone()) };
    on_gpu!(x, dropout(&x.contiguous()?, mask));
    let (rows, columns) = x.dims2()?;
    Ok((x * factors(x.device(), mask, rows, columns)?)?)
}

/// `1/(1 + exp(-x))`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// `value` wherever `mask` isn't 0, otherwise the elements of `x`.
fn filled(x: &Tensor, mask: &Tensor, value: f32) -> Result<Tensor> {
    let value = Tensor::full(value, x.shape(), x.device())?;
    Ok(mask.broadcast_as(x.shape())?.where_cond(&value, x)?)
}

/// The sum of all elements, added up in f64.
fn total(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F64)?.sum_all()?)
}
