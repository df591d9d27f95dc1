//! Floats as factors hold them, and how they are widened and narrowed.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::super::simd::nearest_bf16;

/// A float as it lies in memory.
pub(crate) trait Element: Copy + Sync + 'static {
    /// `to = scale·from`, as far as `from` goes.
    fn widen(from: &[Self], scale: f32, to: &mut [f32]);
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only packing narrows"))]
    /// The nearest bf16 of each scaled element, as bits, as far as `from` goes.
    fn narrow(from: &[Self], scale: f32, to: &mut [u16]);
    /// These very elements, if they are f32.
    fn as_f32(_from: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(from: &[Self], scale: f32, to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = scale * from);
    }

    #[inline(always)]
    fn narrow(from: &[Self], scale: f32, to: &mut [u16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = nearest_bf16(scale * from));
    }

    #[inline(always)]
    fn as_f32(from: &[Self]) -> Option<&[f32]> {
        Some(from)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(from: &[Self], scale: f32, to: &mut [f32]) {
        let wide = |v: &bf16| scale * f32::from_bits(u32::from(v.to_bits()) << 16);
        to.iter_mut().zip(from).for_each(|(to, from)| *to = wide(from));
    }

    #[inline(always)]
    fn narrow(from: &[Self], scale: f32, to: &mut [u16]) {
        if scale == 1.0 {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_bits());
        } else {
            let scaled = |v: &bf16| nearest_bf16(scale * v.to_f32());
            to.iter_mut().zip(from).for_each(|(to, from)| *to = scaled(from));
        }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(from: &[Self], scale: f32, to: &mut [f32]) {
        let len = from.len().min(to.len());
        if let (Some(from), Some(to)) = (from.get(..len), to.get_mut(..len)) {
            from.convert_to_f32_slice(to);
            to.iter_mut().for_each(|to| *to *= scale);
        }
    }

    #[inline(always)]
    fn narrow(from: &[Self], scale: f32, to: &mut [u16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = nearest_bf16(scale * from.to_f32()));
    }
}

/// A matrix seen as lines (rows of the left factor, columns of the right one) along the inner
/// dimension.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a, T> {
    pub(crate) data: &'a [T],
    /// From one line to the next.
    pub(crate) line_stride: usize,
    /// From one step of the inner dimension to the next.
    pub(crate) step_stride: usize,
}

impl<'a, T: Element> Lines<'a, T> {
    /// The same, if they are f32.
    pub(crate) fn as_f32(self) -> Option<Lines<'a, f32>> {
        let data = T::as_f32(self.data)?;
        Some(Lines { data, line_stride: self.line_stride, step_stride: self.step_stride })
    }
}
