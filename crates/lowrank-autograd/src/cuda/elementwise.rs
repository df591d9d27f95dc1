//! Operations whose every element is its own.

use candle_core::{DType, Tensor};

use super::{
    Argument, address, blocks, empty, f32s, floats, gpu, launch, maybe, maybe_floats, refused,
};
use crate::{
    Dropout, Result,
    kernels::adamw::AdamWUpdate,
    ops::{Activation, RotaryStyle},
};

/// A function as kernels.cu numbers it.
fn code(f: Activation) -> Argument {
    Argument::Int(match f {
        Activation::Relu => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::QuickGelu => 4,
        Activation::Tanh => 5,
        Activation::Sigmoid => 6,
        Activation::Identity => 7,
    })
}

/// A number of elements.
fn long(n: usize) -> Argument {
    Argument::Long(n as i64)
}

/// `f(g)·u`, or `f(g)` without `u`: in bf16 where both are, otherwise in f32 and, if `half` wants it,
/// in bf16 as well.
pub(crate) fn gated(
    f: Activation,
    g: &Tensor,
    u: Option<&Tensor>,
    half: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (gpu, n) = (gpu(g)?, g.elem_count());
    let narrow = [Some(g), u].into_iter().flatten().all(|x| x.dtype() == DType::BF16);
    let place = |wanted: bool, dtype| wanted.then(|| empty(gpu, dtype, g.dims())).transpose();
    let (y, y16) = (place(!narrow, DType::F32)?, place(narrow || half, DType::BF16)?);
    let [(g, narrow_g), (u, narrow_u)] = [floats(g)?, maybe_floats(u)?];
    let places = [maybe(y.as_ref(), f32s)?, maybe_floats(y16.as_ref())?.0];
    let arguments = [&[g, narrow_g, u, narrow_u][..], &places, &[long(n), code(f)]].concat();
    // SAFETY: the kernel `gated` takes these, of `n` elements each.
    unsafe { launch(gpu, "gated", blocks(n), &arguments) }?;
    match (y, y16) {
        (Some(y), y16) => Ok((y, y16)),
        (None, Some(y16)) => Ok((y16, None)),
        (None, None) => refused("`gated` with nothing to write"),
    }
}

/// What `dy` makes of `f(g)·u`, or of `f(g)` without `u`: the gradients of `g` and of `u`, in the
/// dtypes that are given for those that are needed.
pub(crate) fn gated_backward(
    f: Activation,
    dy: &Tensor,
    g: &Tensor,
    u: Option<Tensor>,
    needed: [Option<DType>; 2],
) -> Result<[Option<Tensor>; 2]> {
    let (gpu, n) = (gpu(g)?, g.elem_count());
    let place = |dtype: Option<DType>| dtype.map(|dtype| empty(gpu, dtype, g.dims())).transpose();
    let [dg, du] = [place(needed[0])?, place(needed[1])?];
    let operands = [floats(dy)?, floats(g)?, maybe_floats(u.as_ref())?];
    let places = [maybe_floats(dg.as_ref())?, maybe_floats(du.as_ref())?];
    let flat = |pairs: &[(Argument, Argument)]| pairs.iter().flat_map(|p| [p.0, p.1]).collect();
    let (operands, places): (Vec<_>, Vec<_>) = (flat(&operands), flat(&places));
    let arguments = [&operands[..], &places, &[long(n), code(f)]].concat();
    // SAFETY: the kernel `gated_backward` takes these, of `n` elements each.
    unsafe { launch(gpu, "gated_backward", blocks(n), &arguments) }?;
    Ok([dg, du])
}

/// `a + b` in f32.
pub(crate) fn added(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (gpu, n) = (gpu(a)?, a.elem_count());
    if a.dims() != b.dims() {
        return refused(format_args!("can't add {:?} and {:?}", a.shape(), b.shape()));
    }
    let y = empty(gpu, DType::F32, a.dims())?;
    let ((a, narrow_a), (b, narrow_b)) = (floats(a)?, floats(b)?);
    let arguments = [a, narrow_a, b, narrow_b, f32s(&y)?, long(n)];
    // SAFETY: the kernel `added` takes these, of `n` elements each.
    unsafe { launch(gpu, "added", blocks(n), &arguments) }?;
    Ok(y)
}

/// `x` `[rows, width]` with `2·half` elements of each head, from `first` on, turned by angles whose
/// cosine and sine are `[rows, half]`; `sign` -1 turns them back. In the dtype of `x`.
pub(crate) fn rotary(
    x: &Tensor,
    [cos, sin]: [&Tensor; 2],
    head_dim: usize,
    first: usize,
    style: RotaryStyle,
    sign: f32,
) -> Result<Tensor> {
    let (gpu, n, (_, width), half) = (gpu(x)?, x.elem_count(), x.dims2()?, cos.dim(1)?);
    let y = empty(gpu, x.dtype(), x.dims())?;
    let pairs = matches!(style, RotaryStyle::Pairs);
    let (x, narrow) = floats(x)?;
    let tensors = [x, f32s(cos)?, f32s(sin)?, floats(&y)?.0, narrow];
    let numbers = [width, head_dim, first, half].map(Argument::from);
    let arguments = [&tensors[..], &[long(n)], &numbers, &[pairs.into(), sign.into()]].concat();
    // SAFETY: the kernel `rotary` takes these; shapes were checked by the operation.
    unsafe { launch(gpu, "rotary", blocks(n), &arguments) }?;
    Ok(y)
}

/// `[rows, heads·dim]` as `[heads, rows, dim]`, in `dtype`.
pub(crate) fn by_head(x: &Tensor, heads: usize, dtype: DType) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    swap_heads(x, [rows, heads, width / heads], true, dtype)
}

/// `[heads, rows, dim]` as `[rows, heads·dim]`, in `dtype`.
pub(crate) fn by_row(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let (heads, rows, dim) = x.dims3()?;
    swap_heads(x, [rows, heads, dim], false, dtype)
}

fn swap_heads(
    x: &Tensor,
    [rows, heads, dim]: [usize; 3],
    to_heads: bool,
    dtype: DType,
) -> Result<Tensor> {
    let (gpu, n) = (gpu(x)?, x.elem_count());
    let shape: &[usize] = if to_heads { &[heads, rows, dim] } else { &[rows, heads * dim] };
    let y = empty(gpu, dtype, shape)?;
    let ((x, narrow), (y_at, narrow_y)) = (floats(x)?, floats(&y)?);
    let numbers = [rows, heads, dim].map(Argument::from);
    let flags = [to_heads.into(), narrow, narrow_y];
    let arguments = [&[x, y_at, long(n)][..], &numbers, &flags].concat();
    // SAFETY: the kernel `swap_heads` takes these, and both hold rows·heads·dim elements.
    unsafe { launch(gpu, "swap_heads", blocks(n), &arguments) }?;
    Ok(y)
}

/// `x` `[rows, columns]` with its mask applied.
pub(crate) fn dropout(x: &Tensor, mask: &Dropout) -> Result<Tensor> {
    let (gpu, (rows, columns)) = (gpu(x)?, x.dims2()?);
    let keys = mask.rows.iter().take(rows).map(|key| *key as i64).collect::<Vec<_>>();
    let keys = Tensor::from_vec(keys, rows, x.device())?;
    let (y, n) = (empty(gpu, DType::F32, x.dims())?, x.elem_count());
    let (key, threshold, keep) = mask.numbers();
    let tensors = [f32s(x)?, Argument::Address(address(&keys, &[DType::I64])?), f32s(&y)?];
    let numbers = [long(n), columns.into(), Argument::Word(key)];
    let rest = [Argument::Unsigned(threshold), keep.into()];
    let arguments = [&tensors[..], &numbers, &rest].concat();
    // SAFETY: the kernel `dropout` takes these; there is a key for each row.
    unsafe { launch(gpu, "dropout", blocks(n), &arguments) }?;
    Ok(y)
}

/// AdamW's update of a parameter and its moments where they lie: whoever shares them sees the new
/// numbers.
pub(crate) fn update(
    n: AdamWUpdate,
    p: &Tensor,
    g: &Tensor,
    [mean, square]: [&Tensor; 2],
) -> Result<()> {
    let (gpu, len) = (gpu(p)?, p.elem_count());
    let tensors = [f32s(p)?, f32s(g)?, f32s(mean)?, f32s(square)?];
    let numbers = [n.keep, n.new_mean, n.old_square, n.new_square, n.size, n.root, n.epsilon];
    let arguments = [&tensors[..], &[long(len)], &numbers.map(Argument::from)].concat();
    // SAFETY: the kernel `adamw` takes these, of `len` elements each, which was checked.
    unsafe { launch(gpu, "adamw", blocks(len), &arguments) }
}

/// The sum of the squares of all elements of `tensors`, of which there is at least one, in f64; it
/// waits for the GPU once.
pub(crate) fn square_sum(tensors: &[&Tensor]) -> Result<f64> {
    /// Elements that a block sums up, and the most blocks for one tensor.
    const EACH: usize = 1 << 14;
    const MOST: usize = 1 << 10;
    let parts = |t: &Tensor| t.elem_count().div_ceil(EACH).min(MOST);
    let (gpu, total) = (gpu(tensors[0])?, tensors.iter().map(|t| parts(t)).sum());
    let (sums, mut next) = (empty(gpu, DType::F64, &[total])?, 0);
    for tensor in tensors {
        let place = address(&sums.narrow(0, next, parts(tensor))?, &[DType::F64])?;
        let arguments = [f32s(tensor)?, Argument::Address(place), long(tensor.elem_count())];
        // SAFETY: the kernel `square_sums` takes these and writes a sum for each block.
        unsafe { launch(gpu, "square_sums", parts(tensor), &arguments) }?;
        next += parts(tensor);
    }
    Ok(sums.to_vec1::<f64>()?.iter().sum())
}
