//! RMSNorm and LayerNorm.

use candle_core::{D, DType, Device, Tensor};

use super::{data, floats, on, wide};
use crate::{Result, Value, kept::Kept};

/// What is divided by its size: `x`, or `x - mean` if it is `centred`; with the size's inverse.
fn standard(x: &Tensor, eps: f64, centred: bool) -> Result<(Tensor, Tensor)> {
    let x = if centred { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
    let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok((x.broadcast_mul(&inverse)?, inverse))
}

/// [`crate::ops::rms_norm`], or [`crate::ops::layer_norm`] if it is `centred`.
pub(crate) fn normalize(
    op: &'static str,
    [x, weight]: [&Value; 2],
    bias: Option<&Value>,
    eps: f64,
    centred: bool,
    device: &Device,
) -> Result<Value> {
    let (x_data, w) = (floats(device, x)?, data(device, weight)?);
    let b = bias.map(|bias| data(device, bias)).transpose()?;
    let (y, narrow) = normalized(&x_data, &w, b.as_ref(), eps, centred, x.half().is_some())?;
    let mut parents = vec![x, weight];
    parents.extend(bias);
    let y = Value::record_many(op, y, &parents, |needs| {
        let needs = needs.to_vec();
        let kept = (needs[0] || needs[1]).then(|| Kept::composed(x, &x_data));
        move |dy: Tensor| {
            let dy = on(w.device(), &dy)?;
            let mut found = vec![None, None];
            if let Some(kept) = kept {
                if needs[1] {
                    let (unit, _) = standard(&kept.tensor()?, eps, centred)?;
                    found[1] = Some((&dy * unit)?.sum(0)?);
                }
                if needs[0] {
                    found[0] = Some(input_gradient(&dy, kept, &w, eps, centred)?);
                }
            }
            if let Some(needed) = needs.get(2) {
                found.push(needed.then(|| dy.sum(0)).transpose()?);
            }
            Ok(found)
        }
    });
    Ok(y.with_narrow(narrow))
}

/// The result; with its bf16 version if `half` wants it.
fn normalized(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    eps: f64,
    centred: bool,
    half: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    on_gpu!(x, normalize(x, w, b, eps, centred, half));
    let y = standard(&wide(x)?, eps, centred)?.0.broadcast_mul(w)?;
    let y = b.map_or(Ok(y.clone()), |b| y.broadcast_add(b))?;
    let narrow = half.then(|| y.to_dtype(DType::BF16)).transpose()?;
    Ok((y, narrow))
}

/// With `g = dy·w`, `u` without `w`: `(g - mean(g) - u·mean(g·u))/size`, where only a centred `u` has
/// `mean(g)`.
fn input_gradient(dy: &Tensor, x: Kept, w: &Tensor, eps: f64, centred: bool) -> Result<Tensor> {
    on_gpu!(w, normalize_backward(dy, &x.into_tensor(), w, eps, centred));
    let (unit, inverse) = standard(&x.tensor()?, eps, centred)?;
    let g = dy.broadcast_mul(w)?;
    let along = unit.broadcast_mul(&(&g * &unit)?.mean_keepdim(D::Minus1)?)?;
    let across = (&g - along)?;
    let across = match centred {
        true => across.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?,
        false => across,
    };
    Ok(across.broadcast_mul(&inverse)?)
}
