//! Dropout and noise as matrices of factors.

use candle_core::{Device, Tensor};

use crate::{Dropout, Jitter, Result};

/// The factors of a mask as a matrix `[rows, columns]`, f32: 0 or `1/(1-p)`.
///
/// # Errors
/// Those of the tensor library.
pub fn dropout_factors(mask: &Dropout, rows: usize, columns: usize) -> Result<Tensor> {
    let mut factors = vec![0.0; rows * columns];
    for (row, out) in factors.chunks_exact_mut(columns.max(1)).enumerate() {
        mask.factors(row, 0, out);
    }
    Ok(Tensor::from_vec(factors, (rows, columns), &Device::Cpu)?)
}

/// `x` `[n, d]` multiplied by its factors.
///
/// # Errors
/// When `x` isn't a matrix.
pub fn dropout(x: &Tensor, mask: &Dropout) -> Result<Tensor> {
    let (n, d) = x.dims2()?;
    Ok((x * dropout_factors(mask, n, d)?.to_dtype(x.dtype())?)?)
}

/// `x` `[n, d]` multiplied by the factors of noise.
///
/// # Errors
/// When `x` isn't a matrix.
pub fn jitter(x: &Tensor, noise: &Jitter) -> Result<Tensor> {
    let (n, d) = x.dims2()?;
    let mut factors = vec![0.0; n * d];
    for (row, out) in factors.chunks_exact_mut(d.max(1)).enumerate() {
        noise.factors(row, out);
    }
    Ok((x * Tensor::from_vec(factors, (n, d), &Device::Cpu)?.to_dtype(x.dtype())?)?)
}
