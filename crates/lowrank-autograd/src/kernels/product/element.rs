//! Floats as factors hold them, and how they are widened and narrowed.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::super::simd::nearest_bf16;
use crate::elements::Elements;

/// A float as it lies in memory.
pub(crate) trait Element: Copy + Sync + 'static {
    /// `to = scale·from`, as far as `from` goes.
    fn widen(from: &[Self], scale: f32, to: &mut [f32]);
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only packing narrows"))]
    /// The nearest bf16 of each scaled element, as bits, as far as `from` goes.
    fn narrow(from: &[Self], scale: f32, to: &mut [u16]);
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only packing asks"))]
    /// These very elements, by their type.
    fn elements(from: &[Self]) -> Elements<'_>;
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

    fn elements(from: &[Self]) -> Elements<'_> {
        Elements::F32(from)
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

    fn elements(from: &[Self]) -> Elements<'_> {
        Elements::Bf16(from)
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

    fn elements(from: &[Self]) -> Elements<'_> {
        Elements::F16(from)
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

#[cfg(target_arch = "x86_64")]
impl<T> Lines<'_, T> {
    /// The same of other elements.
    pub(crate) fn over<U>(self, data: &[U]) -> Lines<'_, U> {
        Lines { data, line_stride: self.line_stride, step_stride: self.step_stride }
    }
}
