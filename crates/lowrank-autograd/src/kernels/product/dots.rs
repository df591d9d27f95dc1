//! Products with few rows on one side, at the speed of memory: nothing is packed, the many lines
//! are read once, where they lie.

use rayon::prelude::*;

use super::{
    super::simd::vectorized,
    Factor,
    element::{Element, Lines},
    line::{self, Wide},
};
use crate::elements::Elements;

/// Lines of the few that a line of the many meets at once.
pub(crate) const FEW: usize = 8;
/// Most of the few where each of the many is one piece of memory: adapters of most ranks.
const GROUPS: usize = 2 * FEW;
/// Tasks that a product is cut into, as long as each reads a number of elements in this range.
const TASKS: usize = 16;
const LEAST: usize = 1 << 14;
const MOST: usize = 1 << 17;
/// Lines whose sums a task keeps where the steps lie contiguous.
const COLUMNS: usize = 256;
/// Elements that a line has at least, if it is to be read in vectors.
const SHORT: usize = 64;

/// Whether the product of these is one of this file: `few` of f32, contiguous along the inner
/// dimension, and `many` contiguous along either.
pub(crate) fn fits(few: &Factor<'_>, many: &Factor<'_>) -> bool {
    let along = many.step_stride == 1 && many.inner >= SHORT;
    let across = many.line_stride == 1 && few.lines <= 2;
    matches!(few.elements, Elements::F32(_))
        && few.step_stride == 1
        && (1..=GROUPS).contains(&few.lines)
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

fn dots_of<T: Wide>(
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
                weighted_sum(line_of(x, i, few.inner), rows, lines.start, sums);
                sums.iter().enumerate().for_each(|(j, s)| put(lines.start + j, i, scale * s));
            }
            return;
        }
        for j in lines {
            let row = line_of(rows, j, few.inner);
            for first in (0..few.lines).step_by(FEW) {
                let put = |sums: &[f32]| {
                    sums.iter().zip(first..).for_each(|(sum, i)| put(j, i, scale * sum));
                };
                match few.lines - first {
                    1 => put(&line::dots(row, few_lines::<1>(x, first, row.len()))),
                    2 => put(&line::dots(row, few_lines::<2>(x, first, row.len()))),
                    3 => put(&line::dots(row, few_lines::<3>(x, first, row.len()))),
                    4 => put(&line::dots(row, few_lines::<4>(x, first, row.len()))),
                    5 => put(&line::dots(row, few_lines::<5>(x, first, row.len()))),
                    6 => put(&line::dots(row, few_lines::<6>(x, first, row.len()))),
                    7 => put(&line::dots(row, few_lines::<7>(x, first, row.len()))),
                    _ => put(&line::dots(row, few_lines::<FEW>(x, first, row.len()))),
                }
            }
        }
    };
    match parallel && tasks > 1 {
        true => (0..tasks).into_par_iter().for_each(task),
        false => (0..tasks).for_each(task),
    }
}

/// Some of the few.
fn few_lines<const F: usize>(few: Lines<'_, f32>, first: usize, len: usize) -> [&[f32]; F] {
    std::array::from_fn(|i| line_of(few, first + i, len))
}

/// One line of contiguous steps.
fn line_of<T>(lines: Lines<'_, T>, index: usize, len: usize) -> &[T] {
    let start = index * lines.line_stride;
    lines.data.get(start..start + len).unwrap_or_default()
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
            total.iter_mut().zip(&wide).for_each(|(sum, w)| *sum = x.mul_add(*w, *sum));
        }
        sums.copy_from_slice(&total[..count]);
    }
}
