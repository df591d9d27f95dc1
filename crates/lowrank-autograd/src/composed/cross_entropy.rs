//! Softmax cross-entropy of logits, and of a last linear layer's a block of rows at a time.
//!
//! With `s = Σ_{j≠t} exp(z_j - m)` and `e = exp(z_t - m)`: `L = m - z_t + log(s + e)`, and the
//! gradient of the target's logit is `-s/(s + e)`, as in the kernels. A row's few numbers are f64.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::{data, filled, on, product, total};
use crate::{Result, Value, Weight, ops::ScoredTargets};

/// Most logits at a time, unless they are those of fewer than [`ROWS`] rows.
const LOGITS: usize = 1 << 22;
/// Least rows of a block, so that the weights are read rarely.
const ROWS: usize = 256;

/// What some rows of logits come to.
struct Rows {
    /// The sum of their losses, a scalar, f64.
    loss: Tensor,
    /// How many have their largest logit at the target, a scalar, f64.
    correct: Tensor,
    /// The gradient of the logits, if it is wanted.
    gradient: Option<Tensor>,
}

impl Rows {
    /// `z` `[n, classes]`; `classes` are `0..classes` as a row, `targets` `[n, 1]`.
    fn of(z: &Tensor, classes: &Tensor, targets: &Tensor, wanted: bool) -> Result<Self> {
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        let max = z.max_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN))?;
        let target = z.gather(targets, 1)?;
        let hits = z.argmax_keepdim(D::Minus1)?.eq(targets)?;
        let at_target = classes.broadcast_eq(targets)?;
        let exp = filled(&z.broadcast_sub(&max)?.exp()?, &at_target, 0.0)?;
        let others = wide(&exp.sum_keepdim(D::Minus1)?)?;
        let below = (wide(&max)? - wide(&target)?)?;
        let all = (&others + below.neg()?.exp()?)?;
        let gradient = match wanted {
            true => {
                let p = exp.broadcast_div(&all.to_dtype(DType::F32)?)?;
                let own = (others.neg()? / &all)?.to_dtype(DType::F32)?;
                Some(at_target.where_cond(&own.broadcast_as(p.shape())?.contiguous()?, &p)?)
            }
            false => None,
        };
        Ok(Self { loss: (below + all.log()?)?.sum_all()?, correct: total(&hits)?, gradient })
    }
}

/// [`crate::ops::scored_cross_entropy`].
pub(crate) fn scored_cross_entropy(
    logits: &Value,
    targets: &Arc<[u32]>,
    device: &Device,
) -> Result<ScoredTargets> {
    if targets.is_empty() {
        return of_no_rows("cross_entropy", logits, device);
    }
    let z = data(device, logits)?;
    let (n, classes) = z.dims2()?;
    let classes = Tensor::arange(0, classes as u32, device)?.unsqueeze(0)?;
    let targets = Tensor::from_slice(targets, (n, 1), device)?;
    let rows = Rows::of(&z, &classes, &targets, logits.needs_gradient())?;
    scored("cross_entropy", logits, [rows.loss, rows.correct], rows.gradient)
}

/// Loss and hits of no rows, which never leave the processor: a GPU has no empty tensors.
fn of_no_rows(op: &'static str, parent: &Value, device: &Device) -> Result<ScoredTargets> {
    let sum = Value::record(op, Tensor::zeros((), DType::F32, device)?, [parent], |_| {
        let nothing = parent.data().clone();
        move |_| Ok([Some(nothing)])
    });
    Ok(ScoredTargets { sum, correct: 0 })
}

/// The loss of `parent`, whose gradient for a seed of 1 is known.
fn scored(
    op: &'static str,
    parent: &Value,
    [loss, correct]: [Tensor; 2],
    gradient: Option<Tensor>,
) -> Result<ScoredTargets> {
    let sum = Value::record(op, loss.to_dtype(DType::F32)?, [parent], |_| {
        move |dy: Tensor| Ok([gradient.map(|own| own.broadcast_mul(&dy)).transpose()?])
    });
    Ok(ScoredTargets { sum, correct: correct.to_scalar::<f64>()? as usize })
}

/// [`crate::ops::linear_cross_entropy`].
pub(crate) fn linear_cross_entropy(
    x: &Value,
    weight: &Weight,
    bias: Option<&Tensor>,
    softcap: Option<f32>,
    targets: &Arc<[u32]>,
    device: &Device,
) -> Result<ScoredTargets> {
    const OP: &str = "linear_cross_entropy";
    if targets.is_empty() {
        return of_no_rows(OP, x, device);
    }
    let x_data = data(device, x)?;
    let w = weight.on(device)?;
    let (n, count) = (targets.len(), w.dim(0)?);
    let bias = bias.map(|bias| on(device, bias)).transpose()?;
    let classes = Tensor::arange(0, count as u32, device)?.unsqueeze(0)?;
    let targets = Tensor::from_slice(targets, (n, 1), device)?;
    let mut loss = Tensor::zeros((), DType::F64, device)?;
    let mut correct = loss.clone();
    let mut dx = Vec::new();
    let block = (LOGITS / count.max(1)).max(ROWS);
    for start in (0..n).step_by(block) {
        let rows = block.min(n - start);
        let mut z = product(&x_data.narrow(0, start, rows)?, &w.t()?)?;
        if let Some(bias) = &bias {
            z = z.broadcast_add(bias)?;
        }
        if let Some(cap) = softcap.map(f64::from) {
            z = ((z / cap)?.tanh()? * cap)?;
        }
        let targets = targets.narrow(0, start, rows)?.contiguous()?;
        let found = Rows::of(&z, &classes, &targets, x.needs_gradient())?;
        (loss, correct) = ((loss + found.loss)?, (correct + found.correct)?);
        let Some(mut dz) = found.gradient else { continue };
        if let Some(cap) = softcap.map(f64::from) {
            dz = (dz * ((z / cap)?.sqr()?.neg()? + 1.0)?)?;
        }
        dx.push(product(&dz, &w)?);
    }
    let dx = x.needs_gradient().then(|| Tensor::cat(&dx, 0)).transpose()?;
    scored(OP, x, [loss, correct], dx)
}
