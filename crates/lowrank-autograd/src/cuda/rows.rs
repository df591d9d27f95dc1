//! Operations that sum up rows: a block of threads has a row.

use candle_core::{DType, Tensor};

use super::{Argument, address, empty, f32s, floats, gpu, launch, maybe};
use crate::{
    Result,
    ops::{AttentionShape, Span},
};

/// `(x - mean)/size·w + b` in f32, where only what is `centred` has a mean; and its bf16 version if
/// it is wanted.
pub(crate) fn normalize(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    eps: f64,
    centred: bool,
    half: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (gpu, (rows, d)) = (gpu(x)?, x.dims2()?);
    let y = empty(gpu, DType::F32, x.dims())?;
    let narrow = half.then(|| empty(gpu, DType::BF16, x.dims())).transpose()?;
    let y16 = maybe(narrow.as_ref(), |y| Ok(floats(y)?.0))?;
    let (x, narrow_x) = floats(x)?;
    let tensors = [x, f32s(w)?, maybe(b, f32s)?, f32s(&y)?, y16];
    let numbers = [narrow_x, d.into(), (eps as f32).into(), centred.into()];
    let arguments = [&tensors[..], &numbers].concat();
    // SAFETY: the kernel `normalize` takes these: rows of `d`, and rows of `d` numbers for all.
    unsafe { launch(gpu, "normalize", rows, &arguments) }?;
    Ok((y, narrow))
}

/// The gradient of the input of [`normalize`], `x` being f32 or bf16.
pub(crate) fn normalize_backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    centred: bool,
) -> Result<Tensor> {
    let (gpu, (rows, d)) = (gpu(x)?, x.dims2()?);
    let dx = empty(gpu, DType::F32, x.dims())?;
    let (x, narrow) = floats(x)?;
    let tensors = [f32s(dy)?, x, f32s(w)?, f32s(&dx)?];
    let numbers = [narrow, d.into(), (eps as f32).into(), centred.into()];
    // SAFETY: the kernel `normalize_backward` takes these: rows of `d`, and a row of `d` for all.
    unsafe { launch(gpu, "normalize_backward", rows, &[tensors, numbers].concat()) }?;
    Ok(dx)
}

/// The probabilities of a sequence's scores `z` `[heads, queries, keys]`, in `dtype`.
pub(crate) fn softmax(
    z: &Tensor,
    shape: &AttentionShape,
    span: &Span,
    dtype: DType,
) -> Result<Tensor> {
    let (gpu, (heads, queries, keys)) = (gpu(z)?, z.dims3()?);
    let p = empty(gpu, dtype, z.dims())?;
    let (p_at, narrow) = floats(&p)?;
    let cap = shape.softcap.unwrap_or_default();
    let window = shape.window.map_or(-1, |window| i32::try_from(window).unwrap_or(i32::MAX));
    let numbers = [queries.into(), keys.into(), shape.scale.into(), cap.into()];
    let seen = [shape.causal.into(), span.offset.into(), Argument::Int(window)];
    let arguments = [&[f32s(z)?, p_at, narrow][..], &numbers, &seen].concat();
    // SAFETY: the kernel `softmax` takes these: heads·queries rows of `keys`.
    unsafe { launch(gpu, "softmax", heads * queries, &arguments) }?;
    Ok(p)
}

/// The gradient of the scores `z` before scale and cap, in the dtype of the probabilities `p`, from
/// that of the probabilities.
pub(crate) fn softmax_backward(
    dp: &Tensor,
    p: &Tensor,
    z: &Tensor,
    shape: &AttentionShape,
) -> Result<Tensor> {
    let (gpu, (heads, queries, keys)) = (gpu(p)?, p.dims3()?);
    let ds = empty(gpu, p.dtype(), p.dims())?;
    let ((ds_at, narrow), (p, narrow_p)) = (floats(&ds)?, floats(p)?);
    let cap = shape.softcap.unwrap_or_default();
    let tensors = [f32s(dp)?, p, f32s(z)?, ds_at];
    let numbers = [narrow, narrow_p, keys.into(), shape.scale.into(), cap.into()];
    let arguments = [&tensors[..], &numbers].concat();
    // SAFETY: the kernel `softmax_backward` takes these: heads·queries rows of `keys`.
    unsafe { launch(gpu, "softmax_backward", heads * queries, &arguments) }?;
    Ok(ds)
}

/// Losses and hits of logits `[n, classes]`, `[n, 2]` in f64; with the gradient of the logits in
/// `dtype`, if one is given. `cap` is applied to the logits first. Targets are below `classes`.
pub(crate) fn cross_entropy(
    z: &Tensor,
    targets: &Tensor,
    cap: Option<f32>,
    dtype: Option<DType>,
) -> Result<(Tensor, Option<Tensor>)> {
    let (gpu, (rows, classes)) = (gpu(z)?, z.dims2()?);
    let found = empty(gpu, DType::F64, &[rows, 2])?;
    let dz = dtype.map(|dtype| empty(gpu, dtype, z.dims())).transpose()?;
    let (dz_at, narrow) = dz.as_ref().map_or(Ok((Argument::Address(0), false.into())), floats)?;
    let targets = Argument::Address(address(targets, &[DType::U32])?);
    let found_at = Argument::Address(address(&found, &[DType::F64])?);
    let numbers = [narrow, classes.into(), cap.unwrap_or_default().into()];
    let arguments = [&[f32s(z)?, targets, found_at, dz_at][..], &numbers].concat();
    // SAFETY: the kernel `cross_entropy` takes these: a target for each row of `classes`.
    unsafe { launch(gpu, "cross_entropy", rows, &arguments) }?;
    Ok((found, dz))
}
