//! Experts and their routes, one row and one expert at a time.

use std::ops::Range;

use candle_core::{D, Tensor};

use crate::{
    Result,
    ops::{Routing, Score},
};

/// One adapter's term on a stack: `scale·x·A_eᵀ·B_eᵀ`.
#[derive(Clone, Debug)]
pub struct LowRankStack<'a> {
    /// `[experts·r, in]`
    pub a: &'a Tensor,
    /// `[out, r·experts]`
    pub b: &'a Tensor,
    /// `lora_alpha / r` or its variant.
    pub scale: f64,
}

/// Each expert's rows of `x` `[n, in]` by its matrix of `stack` `[experts, out, in]`: `[n, out]`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn grouped_linear(
    x: &Tensor,
    groups: &[Range<usize>],
    stack: &Tensor,
    terms: &[LowRankStack<'_>],
) -> Result<Tensor> {
    let mut all = Vec::new();
    for (expert, rows) in groups.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let x = x.narrow(0, rows.start, rows.len())?;
        let mut w = stack.get(expert)?;
        for term in terms {
            let r = term.a.dim(0)? / groups.len();
            let a = term.a.narrow(0, expert * r, r)?;
            let b = term.b.reshape((term.b.dim(0)?, r, groups.len()))?;
            let b = b.narrow(2, expert, 1)?.squeeze(2)?.contiguous()?;
            w = (w + (b.matmul(&a)? * term.scale)?)?;
        }
        all.push(x.matmul(&w.t()?)?);
    }
    match all.is_empty() {
        true => Ok(Tensor::zeros((0, stack.dim(1)?), x.dtype(), x.device())?),
        false => Ok(Tensor::cat(&all, 0)?),
    }
}

/// The weights `[n, k]` of the `chosen` experts `[n, k]` of each row of `logits` `[n, experts]`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn route(logits: &Tensor, routing: &Routing, chosen: &Tensor) -> Result<Tensor> {
    let p = match routing.score {
        Score::Sigmoid => (logits.neg()?.exp()? + 1.0)?.recip()?,
        Score::Softmax => softmax(logits)?,
    };
    let w = p.gather(chosen, 1)?;
    let w = match routing.normalized {
        true => w.broadcast_div(&w.sum_keepdim(D::Minus1)?)?,
        false => w,
    };
    Ok((w * f64::from(routing.scale))?)
}

fn softmax(logits: &Tensor) -> Result<Tensor> {
    let e = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

/// `E·Σ_e t_e·p_e`, where `t` `[n, E]` are ones for the experts that a row of `logits` `[n, E]`
/// goes to and zeros for others, and `t_e` and `p_e` are means over all rows.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn balance(logits: &Tensor, visits: &Tensor) -> Result<Tensor> {
    let products = (visits.mean(0)? * softmax(logits)?.mean(0)?)?;
    Ok((products.sum_all()? * logits.dim(1)? as f64)?)
}

/// `y_t = Σ_j w_tj·x[place_tj]` for `x` `[m, d]`, `weights` `[n, k]`, `places` `[n·k]`: `[n, d]`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn mix_rows(x: &Tensor, weights: &Tensor, places: &Tensor) -> Result<Tensor> {
    let (n, k) = weights.dims2()?;
    let rows = x.index_select(places, 0)?.reshape((n, k, x.dim(1)?))?;
    Ok(rows.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?)
}
