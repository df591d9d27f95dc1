//! Softmax cross-entropy of logits, and of a last linear layer's a block of rows at a time.
//!
//! With `s = Σ_{j≠t} exp(z_j - m)` and `e = exp(z_t - m)`: `L = m - z_t + log(s + e)`, and the
//! gradient of the target's logit is `-s/(s + e)`, as in the kernels. A row's few numbers are f64.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::{data, factor, filled, on, product};
use crate::{Result, Value, Weight, ops::ScoredTargets};

/// Most logits at a time, unless they are those of fewer than [`ROWS`] rows.
const LOGITS: usize = 1 << 25;
/// Least rows of a block, so that the weights are read rarely.
const ROWS: usize = 256;

/// What rows of logits `z` `[n, classes]` come to: losses, and 1 for each that has its largest logit
/// at the target, `[n, 2]` in f64; and the gradient of `z`, if it is wanted, in f32 or `wanted`. `cap`
/// is what logits are squeezed into first; `targets` are `[n, 1]`.
fn of_rows(
    z: &Tensor,
    targets: &Tensor,
    cap: Option<f32>,
    wanted: Option<DType>,
) -> Result<(Tensor, Option<Tensor>)> {
    on_gpu!(z, cross_entropy(z, targets, cap, wanted));
    let Some(cap) = cap.map(f64::from) else { return of_logits(z, targets, wanted.is_some()) };
    let z = ((z / cap)?.tanh()? * cap)?;
    let (found, dz) = of_logits(&z, targets, wanted.is_some())?;
    let slope = ((z / cap)?.sqr()?.neg()? + 1.0)?;
    Ok((found, dz.map(|dz| dz * slope).transpose()?))
}

/// [`of_rows`] without a cap.
fn of_logits(z: &Tensor, targets: &Tensor, wanted: bool) -> Result<(Tensor, Option<Tensor>)> {
    let wide = |t: &Tensor| t.to_dtype(DType::F64);
    let classes = Tensor::arange(0, z.dim(1)? as u32, z.device())?.unsqueeze(0)?;
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
    Ok((Tensor::cat(&[(below + all.log()?)?, wide(&hits)?], 1)?, gradient))
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
    let targets = Tensor::from_slice(targets, (targets.len(), 1), device)?;
    let wanted = logits.needs_gradient().then_some(DType::F32);
    let (found, dz) = of_rows(&z, &targets, None, wanted)?;
    scored("cross_entropy", logits, &[found], dz)
}

/// Loss and hits of no rows, which never leave the processor: a GPU has no empty tensors.
fn of_no_rows(op: &'static str, parent: &Value, device: &Device) -> Result<ScoredTargets> {
    let sum = Value::record(op, Tensor::zeros((), DType::F32, device)?, [parent], |_| {
        let nothing = parent.data().clone();
        move |_| Ok([Some(nothing)])
    });
    Ok(ScoredTargets { sum, correct: 0 })
}

/// The loss of `parent`, whose gradient for a seed of 1 is known, from what its rows have come to.
fn scored(
    op: &'static str,
    parent: &Value,
    found: &[Tensor],
    gradient: Option<Tensor>,
) -> Result<ScoredTargets> {
    let found = Tensor::cat(found, 0)?.sum(0)?;
    let sum = Value::record(op, found.get(0)?.to_dtype(DType::F32)?, [parent], |_| {
        move |dy: Tensor| Ok([gradient.map(|own| own.broadcast_mul(&dy)).transpose()?])
    });
    Ok(ScoredTargets { sum, correct: found.get(1)?.to_scalar::<f64>()? as usize })
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
    let w = weight.on(device)?;
    let x_data = factor(device, x, w.dtype())?;
    let (n, count) = (targets.len(), w.dim(0)?);
    let bias = bias.map(|bias| on(device, bias)).transpose()?;
    let targets = Tensor::from_slice(targets, (n, 1), device)?;
    let wanted = x.needs_gradient().then_some(match w.dtype() {
        DType::BF16 => DType::BF16,
        _ => DType::F32,
    });
    let (mut all, mut dx) = (Vec::new(), Vec::new());
    let block = (LOGITS / count.max(1)).max(ROWS);
    for start in (0..n).step_by(block) {
        let rows = block.min(n - start);
        let mut z = product(&x_data.narrow(0, start, rows)?, &w.t()?, DType::F32)?;
        if let Some(bias) = &bias {
            z = z.broadcast_add(bias)?;
        }
        let targets = targets.narrow(0, start, rows)?.contiguous()?;
        let (found, dz) = of_rows(&z, &targets, softcap, wanted)?;
        all.push(found);
        dx.extend(dz.map(|dz| product(&dz, &w, DType::F32)).transpose()?);
    }
    let dx = x.needs_gradient().then(|| Tensor::cat(&dx, 0)).transpose()?;
    scored(OP, x, &all, dx)
}
