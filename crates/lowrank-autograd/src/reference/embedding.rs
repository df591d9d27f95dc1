//! Embedding lookup with low-rank adapters, as PEFT's `Embedding` layer does it.

use candle_core::Tensor;

use crate::Result;

/// One adapter's term: `scale·(A[:, ids])ᵀ·Bᵀ`.
#[derive(Clone, Debug)]
pub struct LowRankRows<'a> {
    /// `[r, rows]`.
    pub a: &'a Tensor,
    /// `[dim, r]`.
    pub b: &'a Tensor,
    /// `lora_alpha / r` or its variant.
    pub scale: f64,
}

/// `W[ids] + Σ terms` for `w` `[rows, dim]`: `[ids.len(), dim]`.
///
/// # Errors
/// An id outside the table; shapes that don't fit each other.
pub fn embedding(w: &Tensor, ids: &[u32], terms: &[LowRankRows<'_>]) -> Result<Tensor> {
    let ids = Tensor::new(ids, w.device())?;
    let mut y = w.index_select(&ids, 0)?;
    for term in terms {
        let h = term.a.index_select(&ids, 1)?.t()?;
        y = (y + (h.matmul(&term.b.t()?)? * term.scale)?)?;
    }
    Ok(y)
}
