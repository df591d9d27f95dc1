//! RMSNorm (arXiv:1910.07467): `y = w·x/√(mean(x²)+ε)`, and LayerNorm (arXiv:1607.06450):
//! `y = w·(x-mean)/√(var+ε) + b`. The input is saved; its moments are computed again.

use candle_core::Tensor;

use crate::{
    Result, Value, composed,
    kept::Kept,
    kernels::{
        F32, Floats, check_dims, dims2,
        elementwise::column_sums,
        norm::{self, Center},
        tensor,
    },
    profile,
};

/// `x` `[n, d]`, `weight` `[d]`; returns `[n, d]`, bf16 where weights of bf16 lead to `x`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn rms_norm(x: &Value, weight: &Value, eps: f64) -> Result<Value> {
    normalize("rms_norm", x, weight, None, eps, Center::No)
}

/// `x` `[n, d]`, `weight` and `bias` `[d]`; returns `[n, d]`, bf16 where weights of bf16 lead to `x`.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn layer_norm(x: &Value, weight: &Value, bias: Option<&Value>, eps: f64) -> Result<Value> {
    normalize("layer_norm", x, weight, bias, eps, Center::Mean)
}

fn normalize(
    op: &'static str,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    eps: f64,
    center: Center,
) -> Result<Value> {
    let _time = profile::scope(op);
    let (n, d) = dims2(op, "the input", x.data())?;
    check_dims(op, "the weight", weight.data(), &[d])?;
    bias.map_or(Ok(()), |b| check_dims(op, "the bias", b.data(), &[d]))?;
    if let Some(device) = composed::device([x.data(), weight.data()]) {
        let centred = matches!(center, Center::Mean);
        return composed::normalize(op, [x, weight], bias, eps, centred, &device);
    }
    let bias = bias.map(Value::contiguous).transpose()?;
    let bias = bias.as_ref();
    let (x_data, w_data) = (x.data().contiguous()?, weight.data().contiguous()?);
    let y = {
        let bias = bias.map(|b| F32::of(op, b.data())).transpose()?;
        let (x_read, w, narrow) =
            (Floats::of(op, &x_data)?, F32::of(op, &w_data)?, x.half().is_some());
        norm::forward(x_read.elements(), d, &w, bias.as_deref(), eps, center, narrow)
    };
    let mut parents = vec![x, weight];
    parents.extend(bias);
    Ok(Value::record_many(op, y.tensor(&[n, d])?, &parents, |needs| {
        let (needs, narrow) = (needs.to_vec(), x.is_narrow());
        // Only the bias's gradient does without the input.
        let kept = (needs[0] || needs[1]).then(|| Kept::of(x, &x_data));
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let mut found = vec![None, None];
            if let Some(kept) = &kept {
                let (x, w) = (kept.read(op)?, F32::of(op, &w_data)?);
                let x = x.elements();
                if needs[0] {
                    let dy = Floats::of(op, &dy)?;
                    let dx = norm::input_gradient(dy.elements(), x, d, &w, eps, center, narrow);
                    found[0] = Some(dx.tensor(&[n, d])?);
                }
                if needs[1] {
                    let dw = norm::weight_gradient(&F32::of(op, &dy)?, x, d, eps, center);
                    found[1] = Some(tensor(dw, &[d])?);
                }
            }
            if let Some(needed) = needs.get(2) {
                let sums = || tensor(column_sums(&F32::of(op, &dy)?, d), &[d]);
                found.push(needed.then(sums).transpose()?);
            }
            Ok(found)
        }
    }))
}
