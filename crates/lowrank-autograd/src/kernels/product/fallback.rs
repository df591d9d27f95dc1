//! Products through the `gemm` crate, where there is no tile kernel of our own.

use half::slice::HalfFloatSliceExt;

use super::{Factor, Job};
use crate::elements::Elements;

/// Elements of a half-precision factor that are widened at a time.
const PANEL: usize = 1 << 18;

impl Job<'_> {
    /// The product on any machine.
    ///
    /// # Safety
    /// `to` is writable for all rows, which don't overlap.
    #[expect(unsafe_code, reason = "the target is a pointer, since it may not be initialized yet")]
    pub(super) unsafe fn run_anywhere(&self, to: *mut f32, row_stride: usize) {
        let parallelism = match self.parallel {
            true => gemm::Parallelism::Rayon(0),
            false => gemm::Parallelism::None,
        };
        let (m, n) = (self.a.lines, self.b.lines);
        let wide;
        let left = match self.a.elements {
            Elements::F32(_) => self.a,
            _ => {
                let (data, line_stride, step_stride) = widen(&self.a, 0, m);
                wide = data;
                Factor { elements: Elements::F32(&wide), line_stride, step_stride, ..self.a }
            }
        };
        // SAFETY: the caller's promise; a strip starts inside a row and ends with it.
        let multiply = |first: usize, a: &Factor<'_>, b: &Factor<'_>, scale: f32, add: bool| unsafe {
            product(to.add(first), row_stride, a, b, scale, add, parallelism);
        };
        let per_strip = (PANEL / self.b.inner.max(1)).max(1);
        match self.b.elements {
            Elements::F32(_) => multiply(0, &left, &self.b, self.scale, self.add),
            _ => {
                for first in (0..n).step_by(per_strip) {
                    let lines = per_strip.min(n - first);
                    let (data, line_stride, step_stride) = widen(&self.b, first, lines);
                    let elements = Elements::F32(&data);
                    let strip = Factor { elements, lines, line_stride, step_stride, ..self.b };
                    multiply(first, &left, &strip, self.scale, self.add);
                }
            }
        }
        for (a, b) in self.tails {
            multiply(0, a, b, 1.0, true);
        }
        for (row, bias) in (0..m).flat_map(|row| self.bias.map(|bias| (row, bias))) {
            // SAFETY: the caller's promise.
            let to = unsafe { std::slice::from_raw_parts_mut(to.add(row * row_stride), n) };
            to.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
        }
    }
}

/// Lines `first..first + lines` as f32, with their strides.
fn widen(from: &Factor<'_>, first: usize, lines: usize) -> (Vec<f32>, usize, usize) {
    if from.step_stride != 1 && from.line_stride != 1 {
        let number = |line: usize, step: usize| {
            from.number((first + line) * from.line_stride + step * from.step_stride)
        };
        let numbers = (0..lines).flat_map(|line| (0..from.inner).map(move |i| (line, i)));
        return (numbers.map(|(line, i)| number(line, i)).collect(), from.inner, 1);
    }
    let along = from.step_stride == 1;
    let (runs, len) = if along { (lines, from.inner) } else { (from.inner, lines) };
    let mut wide = vec![0.0; runs * len];
    for (run, to) in wide.chunks_exact_mut(len.max(1)).enumerate() {
        let start = match along {
            true => (first + run) * from.line_stride,
            false => first * from.line_stride + run * from.step_stride,
        };
        match from.elements {
            Elements::F32(data) => {
                to.copy_from_slice(data.get(start..start + len).unwrap_or_default());
            }
            Elements::Bf16(data) => {
                data.get(start..start + len).unwrap_or_default().convert_to_f32_slice(to);
            }
            Elements::F16(data) => {
                data.get(start..start + len).unwrap_or_default().convert_to_f32_slice(to);
            }
        }
    }
    if along { (wide, len, 1) } else { (wide, 1, len) }
}

#[expect(unsafe_code, reason = "the `gemm` crate takes pointers")]
unsafe fn product(
    to: *mut f32,
    row_stride: usize,
    a: &Factor<'_>,
    b: &Factor<'_>,
    scale: f32,
    add: bool,
    parallelism: gemm::Parallelism,
) {
    let (Elements::F32(x), Elements::F32(y)) = (a.elements, b.elements) else { return };
    // SAFETY: factors lie inside their slices (`Factor::new`), the target is the caller's promise.
    unsafe {
        gemm::gemm(
            a.lines,
            b.lines,
            a.inner,
            to,
            1,
            row_stride as isize,
            add,
            x.as_ptr(),
            a.step_stride as isize,
            a.line_stride as isize,
            y.as_ptr(),
            b.line_stride as isize,
            b.step_stride as isize,
            if add { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
