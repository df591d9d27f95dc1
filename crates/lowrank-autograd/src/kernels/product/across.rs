//! Products of a few lines with many whose steps are contiguous rows, as in the gradients of
//! adapters: a group of the few meets a strip of the many while all of their sums stay in registers.
//! Nothing of the many is packed.

#![expect(unsafe_code, reason = "vector instructions, which read through pointers")]

use std::arch::x86_64::*;

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Factor, element::Lines, line::Wide};
use crate::{
    elements::Elements,
    kernels::simd::{Level, level, prefetch},
};

/// Most lines on the side of the few: adapters of most ranks.
const FEW: usize = 16;
/// Lines of a group of the few, and of a strip of the many.
const GROUP: usize = 8;
const STRIP: usize = 32;
/// Lines of the many in a task.
const TASK: usize = 8 * STRIP;
/// Steps ahead of which memory is asked for.
const AHEAD: usize = 16;

/// Sums of a group by lines of a strip.
type Sums = [[f32; STRIP]; GROUP];

/// Whether the product of these is one of this file: what fewer lines make, `dots` has, and what a
/// machine without these vectors makes, the way of all others.
pub(super) fn fits(few: &Factor<'_>, many: &Factor<'_>) -> bool {
    let across = many.line_stride == 1 && many.step_stride != 1 && many.lines >= STRIP;
    let few = matches!(few.elements, Elements::F32(_)) && (3..=FEW).contains(&few.lines);
    across && few && level() != Level::Portable
}

/// `scale·few·manyᵀ`, each element given to `put(line of many, line of few, value)`.
pub(super) fn sums(
    few: &Factor<'_>,
    many: &Factor<'_>,
    scale: f32,
    parallel: bool,
    put: impl Fn(usize, usize, f32) + Sync,
) {
    match many.elements {
        Elements::F32(data) => sums_of::<f32>(few, many, data, scale, parallel, put),
        Elements::Bf16(data) => sums_of::<bf16>(few, many, data, scale, parallel, put),
        Elements::F16(data) => sums_of::<f16>(few, many, data, scale, parallel, put),
    }
}

fn sums_of<T: Wide>(
    few: &Factor<'_>,
    many: &Factor<'_>,
    data: &[T],
    scale: f32,
    parallel: bool,
    put: impl Fn(usize, usize, f32) + Sync,
) {
    let rows = Lines { data, line_stride: 1, step_stride: many.step_stride };
    let groups: Vec<_> = (0..few.lines).step_by(GROUP).map(|line| group(few, line)).collect();
    let strip = |first: usize| {
        for (number, group) in groups.iter().enumerate() {
            let count = STRIP.min(many.lines - first);
            let sums = group_sums(group, rows, first, count);
            for (i, sums) in (number * GROUP..few.lines).zip(&sums) {
                let sums = sums[..count].iter().enumerate();
                sums.for_each(|(j, sum)| put(first + j, i, scale * sum));
            }
        }
    };
    let task = |task: usize| {
        let end = many.lines.min((task + 1) * TASK);
        (task * TASK..end).step_by(STRIP).for_each(strip);
    };
    let tasks = 0..many.lines.div_ceil(TASK);
    match parallel {
        true => tasks.into_par_iter().for_each(task),
        false => tasks.for_each(task),
    }
}

/// The numbers of a group from line `first` on, step after step, with zeros where lines are missing.
fn group(few: &Factor<'_>, first: usize) -> Vec<[f32; GROUP]> {
    let numbers = |step| {
        let mut numbers = [0.0; GROUP];
        for (line, number) in (first..few.lines).zip(&mut numbers) {
            *number = few.element(line, step);
        }
        numbers
    };
    (0..few.inner).map(numbers).collect()
}

/// `Σ x[k]·many[first + j, k]` for each of a group and `count` lines of the many.
fn group_sums<T: Wide>(x: &[[f32; GROUP]], many: Lines<'_, T>, first: usize, count: usize) -> Sums {
    if count == STRIP {
        match level() {
            // SAFETY: `level` has found the instructions on this machine.
            Level::Avx512 => return unsafe { avx512(x, many, first) },
            Level::Avx2 if is_x86_feature_detected!("f16c") => {
                // SAFETY: as above.
                return unsafe { avx2(x, many, first) };
            }
            _ => {}
        }
    }
    one_by_one(x, many, first, count)
}

fn one_by_one<T: Wide>(x: &[[f32; GROUP]], many: Lines<'_, T>, first: usize, count: usize) -> Sums {
    let mut sums = [[0.0; STRIP]; GROUP];
    let mut wide = [0.0; STRIP];
    for (step, x) in x.iter().enumerate() {
        T::widen(&many.data[step * many.step_stride + first..][..count], 1.0, &mut wide);
        for (sums, x) in sums.iter_mut().zip(x) {
            sums.iter_mut().zip(&wide).for_each(|(sum, w)| *sum += x * w);
        }
    }
    sums
}

/// Defines [`group_sums`] of a whole strip over vectors of `$lanes`, `$vectors` of them at a time.
macro_rules! group_sums {
    ($name:ident, $features:literal, $lanes:literal, $vectors:literal, $zero:ident, $set:ident,
     $fma:ident, $store:ident) => {
        #[target_feature(enable = $features)]
        fn $name<T: Wide>(x: &[[f32; GROUP]], many: Lines<'_, T>, first: usize) -> Sums {
            let reach = x.len().saturating_sub(1) * many.step_stride + first + STRIP;
            assert!(x.is_empty() || reach <= many.data.len(), "a strip beyond its matrix");
            let mut found = [[0.0; STRIP]; GROUP];
            for part in (0..STRIP).step_by($vectors * $lanes) {
                let mut sums = [[$zero(); $vectors]; GROUP];
                for (step, x) in x.iter().enumerate() {
                    let at = step * many.step_stride + first + part;
                    prefetch(many.data, at + AHEAD * many.step_stride);
                    for v in 0..$vectors {
                        // SAFETY: the assertion has found the strip's elements of this step.
                        let w = unsafe { T::$name(many.data.as_ptr().add(at + v * $lanes)) };
                        for i in 0..GROUP {
                            sums[i][v] = $fma($set(x[i]), w, sums[i][v]);
                        }
                    }
                }
                for (found, sums) in found.iter_mut().zip(sums) {
                    for (v, sum) in sums.into_iter().enumerate() {
                        let to = &mut found[part + v * $lanes..][..$lanes];
                        // SAFETY: as many elements as a vector has.
                        unsafe { $store(to.as_mut_ptr(), sum) };
                    }
                }
            }
            found
        }
    };
}
group_sums!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    16,
    2,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps
);
group_sums!(
    avx2,
    "avx2,fma,f16c",
    8,
    1,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers with few enough bits for every type.
    fn number(i: usize) -> f32 {
        (i * 37 % 64) as f32 / 32.0 - 1.0
    }

    fn check<T: Wide>(steps: usize, stride: usize, element: impl Fn(f32) -> T) {
        let data: Vec<T> = (0..steps.max(1) * stride).map(|i| element(number(i))).collect();
        let many = Lines { data: &data, line_stride: 1, step_stride: stride };
        let x: Vec<[f32; GROUP]> =
            (0..steps).map(|step| std::array::from_fn(|i| number(step * GROUP + i + 3))).collect();
        let first = stride - STRIP;
        let whole = one_by_one(&x, many, first, STRIP);
        let mut ways = vec![whole, group_sums(&x, many, first, STRIP)];
        if level() >= Level::Avx2 && is_x86_feature_detected!("f16c") {
            // SAFETY: the machine has the instructions.
            ways.push(unsafe { avx2(&x, many, first) });
        }
        for (i, j) in (0..GROUP).flat_map(|i| (0..STRIP).map(move |j| (i, j))) {
            let terms = (0..steps).map(|k| {
                let w = number(k * stride + first + j);
                f64::from(x[k][i]) * f64::from(w)
            });
            let expected: f64 = terms.sum();
            for found in &ways {
                let difference = (f64::from(found[i][j]) - expected).abs();
                assert!(difference <= 1e-6 * steps as f64, "{steps} steps: {difference}");
            }
        }
        let part = group_sums(&x, many, first, STRIP - 5);
        assert!(part.iter().zip(&whole).all(|(p, w)| p[..STRIP - 5] == w[..STRIP - 5]));
    }

    #[test]
    fn all_instruction_sets_give_the_sums() {
        for (steps, stride) in [(0, 32), (1, 32), (7, 33), (64, 47), (333, 65)] {
            check::<f32>(steps, stride, |v| v);
            check::<bf16>(steps, stride, bf16::from_f32);
            check::<f16>(steps, stride, f16::from_f32);
        }
    }
}
