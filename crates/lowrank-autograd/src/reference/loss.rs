//! Losses, summed over all rows or elements.

use candle_core::Tensor;

use crate::Result;

/// `Σ log Σ exp(z) - z[target]` for `logits` `[n, classes]`: a scalar.
///
/// # Errors
/// A target outside the classes.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let below = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
    let log_sum = below.exp()?.sum_keepdim(1)?.log()?;
    Ok((log_sum - below.gather(&targets, 1)?)?.sum_all()?)
}

/// `Σ (x-t)²`: a scalar.
///
/// # Errors
/// When the shapes differ.
pub fn squared_error(x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok((x - targets)?.sqr()?.sum_all()?)
}

/// `Σ max(x,0) - x·t + log(1+exp(-|x|))`, the binary cross-entropy of `σ(x)`: a scalar.
///
/// # Errors
/// When the shapes differ.
pub fn binary_cross_entropy(x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let tail = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok(((x.relu()? - (x * targets)?)? + tail)?.sum_all()?)
}
