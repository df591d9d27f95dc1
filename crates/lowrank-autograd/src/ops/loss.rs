//! Losses of regression and of several labels at once, summed over all elements.
//! Squared error: `L = Σ (x-t)²`, `dx = 2(x-t)`. Binary cross-entropy on logits:
//! `L = Σ max(x,0) - x·t + log(1+exp(-|x|))`, `dx = σ(x) - t`.

use candle_core::Tensor;

use crate::{
    Result, Value, composed,
    kernels::{
        Floats, check_dims,
        elementwise::{sum, zip},
        simd::sigmoid,
        tensor,
    },
    profile,
};

/// Sum of squared differences to `targets`, f32 of the same shape.
///
/// # Errors
/// When the shapes differ.
pub fn squared_error(x: &Value, targets: &Tensor) -> Result<Value> {
    let _time = profile::scope("squared_error");
    if let Some(device) = composed::device([x.data()]) {
        check_dims("squared_error", "the targets", targets, x.dims())?;
        return composed::squared_error(x, targets, &device);
    }
    pointwise("squared_error", x, targets, |x, t| (x - t).powi(2), |x, t| 2.0 * (x - t))
}

/// Sum of binary cross-entropies of logits against `targets` in `[0, 1]`, of the same shape.
///
/// # Errors
/// When the shapes differ.
pub fn binary_cross_entropy(x: &Value, targets: &Tensor) -> Result<Value> {
    let _time = profile::scope("binary_cross_entropy");
    if let Some(device) = composed::device([x.data()]) {
        check_dims("binary_cross_entropy", "the targets", targets, x.dims())?;
        return composed::binary_cross_entropy(x, targets, &device);
    }
    let loss = |x: f32, t: f32| x.max(0.0) - x * t + (-x.abs()).exp().ln_1p();
    let slope = |x: f32, t: f32| sigmoid(x) - t;
    pointwise("binary_cross_entropy", x, targets, loss, slope)
}

fn pointwise(
    op: &'static str,
    x: &Value,
    targets: &Tensor,
    loss: impl Fn(f32, f32) -> f32 + Sync,
    slope: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Result<Value> {
    check_dims(op, "the targets", targets, x.dims())?;
    let (x_data, t_data) = (x.data().contiguous()?, targets.contiguous()?);
    let losses = {
        let (x, t) = (Floats::of(op, &x_data)?, Floats::of(op, &t_data)?);
        zip(x.elements(), t.elements(), loss)
    };
    Ok(Value::record(op, tensor(vec![sum(&losses) as f32], &[])?, [x], |_| {
        move |dy: Tensor| {
            let scale = dy.to_scalar::<f32>()?;
            let (x, t) = (Floats::of(op, &x_data)?, Floats::of(op, &t_data)?);
            let dx = zip(x.elements(), t.elements(), |x, t| scale * slope(x, t));
            Ok([Some(tensor(dx, x_data.dims())?)])
        }
    }))
}
