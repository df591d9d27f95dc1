//! Products with few rows on one side, at the speed of memory: nothing is packed, the many lines
//! are read once, where they lie.

use rayon::prelude::*;

use super::{
    super::simd::vectorized,
    Factor,
    element::{Element, Lines},
};
use crate::weight::Elements;

/// Most lines on the side of the few.
pub(crate) const FEW: usize = 8;
/// Elements of the many that a task reads.
const TASK: usize = 1 << 15;
/// Lines whose sums a task keeps where the steps lie contiguous.
const COLUMNS: usize = 256;
/// Elements read at a time.
const CHUNK: usize = 16;

/// Whether the product of these is one of this file: `few` of f32, contiguous along the inner
/// dimension, and `many` contiguous along either.
pub(crate) fn fits(few: &Factor<'_>, many: &Factor<'_>) -> bool {
    let along = many.step_stride == 1 && many.inner >= 4 * CHUNK;
    let across = many.line_stride == 1 && few.lines <= 2;
    matches!(few.elements, Elements::F32(_))
        && few.step_stride == 1
        && (1..=FEW).contains(&few.lines)
        && (along || across)
}

/// `scale·few·manyᵀ`, each element given to `put(line of many, line of few, value)`.
pub(crate) fn dots(
    few: &Factor<'_>,
    many: &Factor<'_>,
    scale: f32,
    parallel: bool,
    put: impl Fn(usize, usize, f32) + Sync,
) {
    match many.elements {
        Elements::F32(data) => dots_of(few, many, data, scale, parallel, put),
        Elements::Bf16(data) => dots_of(few, many, data, scale, parallel, put),
        Elements::F16(data) => dots_of(few, many, data, scale, parallel, put),
    }
}

fn dots_of<T: Element>(
    few: &Factor<'_>,
    many: &Factor<'_>,
    data: &[T],
    scale: f32,
    parallel: bool,
    put: impl Fn(usize, usize, f32) + Sync,
) {
    let Elements::F32(x) = few.elements else { return };
    let x = Lines { data: x, line_stride: few.line_stride, step_stride: 1 };
    let rows = Lines { data, line_stride: many.line_stride, step_stride: many.step_stride };
    let along = many.step_stride == 1;
    let per_task = if along { (TASK / many.inner.max(1)).max(1) } else { COLUMNS };
    let tasks = many.lines.div_ceil(per_task);
    let task = |task: usize| {
        let lines = task * per_task..((task + 1) * per_task).min(many.lines);
        if !along {
            let mut sums = [0.0; COLUMNS];
            for i in 0..few.lines {
                let sums = &mut sums[..lines.len()];
                weighted_sum(line(x, i, few.inner), rows, lines.start, sums);
                sums.iter().enumerate().for_each(|(j, s)| put(lines.start + j, i, scale * s));
            }
            return;
        }
        for j in lines {
            let row = line(rows, j, few.inner);
            let put = |i: usize, sum: f32| put(j, i, scale * sum);
            match few.lines {
                1 => line_dots(row, x, &mut [[0.0; 4 * CHUNK]; 1], put),
                2 => line_dots(row, x, &mut [[0.0; 2 * CHUNK]; 2], put),
                3 => line_dots(row, x, &mut [[0.0; CHUNK]; 3], put),
                4 => line_dots(row, x, &mut [[0.0; CHUNK]; 4], put),
                5 => line_dots(row, x, &mut [[0.0; CHUNK]; 5], put),
                6 => line_dots(row, x, &mut [[0.0; CHUNK]; 6], put),
                7 => line_dots(row, x, &mut [[0.0; CHUNK]; 7], put),
                _ => line_dots(row, x, &mut [[0.0; CHUNK]; FEW], put),
            }
        }
    };
    match parallel && tasks > 1 {
        true => (0..tasks).into_par_iter().for_each(task),
        false => (0..tasks).for_each(task),
    }
}

/// One line of contiguous steps.
fn line<T>(lines: Lines<'_, T>, index: usize, len: usize) -> &[T] {
    let start = index * lines.line_stride;
    lines.data.get(start..start + len).unwrap_or_default()
}

vectorized! {
    /// One of the many with each of the first `F` of the few; `zeros` sets how many sums run
    /// beside each other, to be added in a fixed order at the end.
    fn line_dots[T: Element, const F: usize, const L: usize](
        row: &[T], few: Lines<'_, f32>, zeros: &mut [[f32; L]; F], put: impl Fn(usize, f32),
    ) {
        let mut sums = *zeros;
        let mut wide = [0.0; L];
        let few: [&[f32]; F] = std::array::from_fn(|i| line(few, i, row.len()));
        let (chunks, rest) = row.as_chunks::<L>();
        for (at, chunk) in chunks.iter().enumerate() {
            T::widen(chunk, 1.0, &mut wide);
            for (sums, x) in sums.iter_mut().zip(&few) {
                let x = x.get(at * L..(at + 1) * L).unwrap_or_default();
                for ((sum, x), w) in sums.iter_mut().zip(x).zip(&wide) {
                    *sum += x * w;
                }
            }
        }
        T::widen(rest, 1.0, &mut wide);
        for (i, (sums, x)) in sums.iter().zip(&few).enumerate() {
            let x = x.get(row.len() - rest.len()..).unwrap_or_default();
            let tail: f32 = x.iter().zip(&wide).map(|(x, w)| x * w).sum();
            let mut halves = *sums;
            let mut len = L / 2;
            while len > 0 {
                for k in 0..len {
                    halves[k] += halves[k + len];
                }
                len /= 2;
            }
            put(i, halves[0] + tail);
        }
    }
}

vectorized! {
    /// `sums[j] = Σ x[k]·many[first + j, k]`, steps of `many` being contiguous rows.
    fn weighted_sum[T: Element](x: &[f32], many: Lines<'_, T>, first: usize, sums: &mut [f32]) {
        let mut total = [0.0; COLUMNS];
        let mut wide = [0.0; COLUMNS];
        let count = sums.len().min(COLUMNS);
        for (step, x) in x.iter().enumerate() {
            let start = step * many.step_stride + first;
            let row = many.data.get(start..start + count).unwrap_or_default();
            T::widen(row, 1.0, &mut wide);
            total.iter_mut().zip(&wide).for_each(|(sum, w)| *sum += x * w);
        }
        sums.copy_from_slice(&total[..count]);
    }
}
