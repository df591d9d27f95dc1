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
/// Tasks that a product is cut into, as long as each reads a number of elements in this range.
const TASKS: usize = 16;
const LEAST: usize = 1 << 14;
const MOST: usize = 1 << 17;
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
    let elements = (many.lines * many.inner / TASKS).clamp(LEAST, MOST);
    let per_task = if along { (elements / many.inner.max(1)).max(1) } else { COLUMNS };
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
        // Chunks are arrays throughout, whose loops the compiler unrolls into registers.
        let few_chunks: [&[[f32; L]]; F] = std::array::from_fn(|i| few[i].as_chunks::<L>().0);
        for (at, chunk) in chunks.iter().enumerate() {
            T::widen(chunk, 1.0, &mut wide);
            for (sums, x) in sums.iter_mut().zip(&few_chunks) {
                let Some(x) = x.get(at) else { break };
                for ((sum, x), w) in sums.iter_mut().zip(x).zip(&wide) {
                    *sum += x * w;
                }
            }
        }
        T::widen(rest, 1.0, &mut wide);
        for (i, (sums, x)) in sums.iter().zip(&few).enumerate() {
            let x = x.get(row.len() - rest.len()..).unwrap_or_default();
            let tail: f32 = x.iter().zip(&wide).map(|(x, w)| x * w).sum();
            put(i, whole_sum(sums) + tail);
        }
    }
}

/// The sum of all lanes, in an order that vector registers like.
#[inline(always)]
fn whole_sum<const L: usize>(sums: &[f32; L]) -> f32 {
    let mut lanes = [0.0; CHUNK];
    for part in sums.as_chunks::<CHUNK>().0 {
        lanes.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
    }
    let eight: [f32; 8] = std::array::from_fn(|k| lanes[k] + lanes[k + 8]);
    let four: [f32; 4] = std::array::from_fn(|k| eight[k] + eight[k + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
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
