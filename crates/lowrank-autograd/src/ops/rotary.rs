//! Rotary position embedding (arXiv:2104.09864): pairs of elements are rotated by an angle that
//! grows with the position. The gradient is the rotation back; nothing is saved but the angles.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};

use crate::{
    Error, Result, Value, composed,
    kernels::{F32, Floats, check_dims, dims2, rotary as kernel},
    profile,
};

/// Which two elements of a head make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryStyle {
    /// `i` and `i + half` (Llama, GPT-NeoX).
    Halves,
    /// `2i` and `2i + 1` (GPT-J, GLM).
    Pairs,
}

/// Cosine and sine of every row's angles, `[n, half]` each; `2·half` elements of a head turn.
#[derive(Clone, Debug)]
pub struct Angles {
    /// `[n, half]`
    pub(crate) cos: Tensor,
    /// `[n, half]`
    pub(crate) sin: Tensor,
    /// The same two on another device, once an operation there has asked for them.
    copies: Arc<OnceLock<[Tensor; 2]>>,
}

impl Angles {
    /// Angles of these cosines and sines, `[n, half]` each.
    pub fn new(cos: Tensor, sin: Tensor) -> Self {
        Self { cos, sin, copies: Arc::default() }
    }

    /// Cosines and sines on a device, row by row; copied there once.
    pub(crate) fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
        if let Some(copies) = self.copies.get().filter(|[cos, _]| cos.device().same_device(device))
        {
            return Ok(copies.clone());
        }
        let there = |t: &Tensor| t.contiguous()?.to_device(device);
        let copies = [there(&self.cos)?, there(&self.sin)?];
        self.copies.get_or_init(|| copies.clone());
        Ok(copies)
    }
}

/// Rotates every head of `x` `[n, heads·head_dim]`, from its first element on; bf16 if `x` is.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn rotary(x: &Value, head_dim: usize, angles: &Angles, style: RotaryStyle) -> Result<Value> {
    rotary_from(x, head_dim, 0, angles, style)
}

/// [`rotary`] of the elements of a head from `first` on.
///
/// # Errors
/// Shapes that don't fit each other.
pub fn rotary_from(
    x: &Value,
    head_dim: usize,
    first: usize,
    angles: &Angles,
    style: RotaryStyle,
) -> Result<Value> {
    let _time = profile::scope("rotary");
    const OP: &str = "rotary";
    let (n, width) = dims2(OP, "the input", x.data())?;
    let (_, half) = dims2(OP, "the angles", &angles.cos)?;
    check_dims(OP, "the angles", &angles.cos, &[n, half])?;
    check_dims(OP, "the angles", &angles.sin, &[n, half])?;
    let heads = width / head_dim.max(1);
    check_dims(OP, "the input", x.data(), &[n, heads * head_dim])?;
    if first.saturating_add(2 * half) > head_dim {
        let most = head_dim.saturating_sub(first) / 2;
        let must_be = format!("at most [{n}, {most}] for heads of {head_dim} from {first} on");
        let (what, found) = ("the angles", vec![n, half]);
        return Err(Error::Shape { op: OP, what, found, must_be });
    }
    if let Some(device) = composed::device([x.data()]) {
        return composed::rotary(x, head_dim, first, angles, style, &device);
    }
    let narrow = x.is_narrow();
    let turn = move |x: &Tensor, angles: &Angles, direction: f32| -> Result<Tensor> {
        let x = x.contiguous()?;
        let (cos, sin) = (F32::of(OP, &angles.cos)?, F32::of(OP, &angles.sin)?);
        let (x, heads, turn) = (Floats::of(OP, &x)?, (heads, head_dim), (style, direction));
        kernel::rotate(x.elements(), heads, first, (&cos, &sin), half, turn, narrow)
            .tensor(&[n, width])
    };
    let angles = Angles::new(angles.cos.contiguous()?, angles.sin.contiguous()?);
    let y = turn(x.data(), &angles, 1.0)?;
    Ok(Value::record(OP, y, [x], |_| move |dy: Tensor| Ok([Some(turn(&dy, &angles, -1.0)?)])))
}
