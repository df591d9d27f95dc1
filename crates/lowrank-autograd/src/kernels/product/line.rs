//! Inner products of one line with a few others, whose sums all stay in registers: the line is read
//! once, as fast as it comes.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector instructions, which read through pointers")
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::element::Element;
#[cfg(target_arch = "x86_64")]
use crate::kernels::simd::{Level, level, prefetch_early};

/// How many bytes ahead memory is asked for, a cache line at a time.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// An element that a vector of f32 is loaded from.
pub(super) trait Wide: Element {
    /// # Safety
    /// 16 elements may be read, and the machine has AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512(from: *const Self) -> __m512;
    /// # Safety
    /// 8 elements may be read, and the machine has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx2(from: *const Self) -> __m256;
}

/// Implements [`Wide`] by the instructions that load one vector.
macro_rules! wide {
    ($element:ty, $from:ident => $avx512:expr, $avx2:expr) => {
        impl Wide for $element {
            #[cfg(target_arch = "x86_64")]
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn avx512($from: *const Self) -> __m512 {
                // SAFETY: the caller's promise.
                unsafe { $avx512 }
            }

            #[cfg(target_arch = "x86_64")]
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn avx2($from: *const Self) -> __m256 {
                // SAFETY: the caller's promise.
                unsafe { $avx2 }
            }
        }
    };
}
wide!(f32, from => _mm512_loadu_ps(from), _mm256_loadu_ps(from));
wide!(
    bf16,
    from => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
        _mm256_loadu_si256(from.cast()),
    ))),
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
        _mm_loadu_si128(from.cast()),
    )))
);
wide!(
    f16,
    from => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
    _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
);

/// `Σ row·x` of each of the few, which are as long as `row`.
pub(super) fn dots<T: Wide, const F: usize>(row: &[T], few: [&[f32]; F]) -> [f32; F] {
    assert!(few.iter().all(|x| x.len() == row.len()), "lines of different lengths");
    #[cfg(target_arch = "x86_64")]
    match (level(), F) {
        // SAFETY: `level` has found the instructions on this machine.
        (Level::Avx512, 1) => return unsafe { avx512::<T, F, 4>(row, few) },
        // SAFETY: as above.
        (Level::Avx512, 2) => return unsafe { avx512::<T, F, 2>(row, few) },
        // SAFETY: as above.
        (Level::Avx512, _) => return unsafe { avx512::<T, F, 1>(row, few) },
        (Level::Avx2, _) if !is_x86_feature_detected!("f16c") => {}
        // SAFETY: as above.
        (Level::Avx2, 1) => return unsafe { avx2::<T, F, 4>(row, few) },
        // SAFETY: as above.
        (Level::Avx2, 2) => return unsafe { avx2::<T, F, 2>(row, few) },
        // SAFETY: as above.
        (Level::Avx2, _) => return unsafe { avx2::<T, F, 1>(row, few) },
        (Level::Portable, _) => {}
    }
    rest(row, few, 0, [0.0; F])
}

/// Adds what lies from `first` on.
#[inline(always)]
fn rest<T: Wide, const F: usize>(
    row: &[T],
    few: [&[f32]; F],
    first: usize,
    mut sums: [f32; F],
) -> [f32; F] {
    let mut wide = [0.0; 16];
    for (i, part) in row[first..].chunks(16).enumerate() {
        T::widen(part, 1.0, &mut wide);
        for (sum, x) in sums.iter_mut().zip(few) {
            let x = &x[first + 16 * i..][..part.len()];
            *sum += x.iter().zip(&wide).map(|(x, w)| x * w).sum::<f32>();
        }
    }
    sums
}

/// Defines `$name<T, F, U>`, which keeps `U` vectors of sums for each of the few.
#[cfg(target_arch = "x86_64")]
macro_rules! line_dots {
    ($name:ident, $features:literal, $lanes:literal, $zero:ident, $load:ident, $fma:ident,
     $add:ident, $store:ident) => {
        #[target_feature(enable = $features)]
        fn $name<T: Wide, const F: usize, const U: usize>(row: &[T], few: [&[f32]; F]) -> [f32; F] {
            let mut sums = [[$zero(); U]; F];
            let whole = row.len() / (U * $lanes) * (U * $lanes);
            for at in (0..whole).step_by(U * $lanes) {
                for u in 0..U {
                    // Rows follow each other: what the hardware asks for ends with its page.
                    if (u * $lanes * size_of::<T>()).is_multiple_of(LINE) {
                        prefetch_early(row, at + u * $lanes + AHEAD / size_of::<T>());
                    }
                    // SAFETY: `U` vectors from `at` on lie in the row.
                    let w = unsafe { T::$name(row.as_ptr().add(at + u * $lanes)) };
                    for (sums, x) in sums.iter_mut().zip(&few) {
                        // SAFETY: as there, since all have one length.
                        let x = unsafe { $load(x.as_ptr().add(at + u * $lanes)) };
                        sums[u] = $fma(x, w, sums[u]);
                    }
                }
            }
            let sums = sums.map(|sums| {
                let mut lanes = [0.0; $lanes];
                let sum = sums.into_iter().reduce(|a, b| $add(a, b)).unwrap_or($zero());
                // SAFETY: an array of a vector's size.
                unsafe { $store(lanes.as_mut_ptr(), sum) };
                lanes.iter().sum()
            });
            rest(row, few, whole, sums)
        }
    };
}
#[cfg(target_arch = "x86_64")]
line_dots!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);
#[cfg(target_arch = "x86_64")]
line_dots!(
    avx2,
    "avx2,fma,f16c",
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to multiply a row of these elements with `F` lines, on this machine.
    fn ways<T: Wide, const F: usize>(row: &[T], few: [&[f32]; F]) -> Vec<[f32; F]> {
        let found = vec![rest(row, few, 0, [0.0; F]), dots(row, few)];
        #[cfg(target_arch = "x86_64")]
        let found = [found, in_vectors(row, few)].concat();
        found
    }

    #[cfg(target_arch = "x86_64")]
    fn in_vectors<T: Wide, const F: usize>(row: &[T], few: [&[f32]; F]) -> Vec<[f32; F]> {
        // SAFETY: each runs only where the machine has the instructions.
        let avx512 = (level() == Level::Avx512).then(|| unsafe { avx512::<T, F, 2>(row, few) });
        let has_avx2 = level() >= Level::Avx2 && is_x86_feature_detected!("f16c");
        // SAFETY: as above.
        let avx2 = has_avx2.then(|| unsafe { avx2::<T, F, 2>(row, few) });
        avx512.into_iter().chain(avx2).collect()
    }

    fn check<T: Wide, const F: usize>(len: usize, element: impl Fn(f32) -> T) {
        let values = |seed: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0).collect()
        };
        let row = values(0);
        let few: [Vec<f32>; F] = std::array::from_fn(|i| values(i + 1));
        let elements: Vec<T> = row.iter().map(|v| element(*v)).collect();
        let dot = |x: &Vec<f32>| -> f64 {
            x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        for found in ways::<T, F>(&elements, std::array::from_fn(|i| few[i].as_slice())) {
            for (x, found) in std::iter::zip(&few, found) {
                let difference = (dot(x) - f64::from(found)).abs();
                assert!(difference <= 1e-6 * len as f64, "{len} elements, {F} lines: {difference}");
            }
        }
    }

    #[test]
    fn all_instruction_sets_give_the_inner_products() {
        // The values have few enough bits for every type.
        for len in [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 200, 577] {
            check::<f32, 1>(len, |v| v);
            check::<f32, 3>(len, |v| v);
            check::<bf16, 1>(len, bf16::from_f32);
            check::<bf16, 2>(len, bf16::from_f32);
            check::<bf16, 8>(len, bf16::from_f32);
            check::<f16, 1>(len, f16::from_f32);
            check::<f16, 5>(len, f16::from_f32);
        }
    }
}
