//! Linear layers with low-rank adapters (arXiv:2106.09685, equation 3).

use candle_core::Tensor;

use crate::{Dropout, Result, reference::dropout};

/// One adapter's term: `scale·(drop(x)·Aᵀ·Bᵀ + bias)`.
#[derive(Clone, Debug)]
pub struct LowRank<'a> {
    /// `[r, in]`.
    pub a: &'a Tensor,
    /// `[out, r]`.
    pub b: &'a Tensor,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// `lora_alpha / r` or its variant.
    pub scale: f64,
    /// Dropout on `x`.
    pub dropout: Option<&'a Dropout>,
}

/// `x·Wᵀ + bias + Σ terms` for `x` `[n, in]`, `w` `[out, in]`, `bias` `[out]`: `[n, out]`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    terms: &[LowRank<'_>],
) -> Result<Tensor> {
    let mut y = x.matmul(&w.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    for term in terms {
        let x = term.dropout.map_or_else(|| Ok(x.clone()), |mask| dropout(x, mask))?;
        let mut own = x.matmul(&term.a.t()?)?.matmul(&term.b.t()?)?;
        if let Some(bias) = term.bias {
            own = own.broadcast_add(bias)?;
        }
        y = (y + (own * term.scale)?)?;
    }
    Ok(y)
}
