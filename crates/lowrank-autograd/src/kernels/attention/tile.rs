//! Products of small tiles, straight from where the factors lie: the right factor is read by whole
//! rows, the left one element by element with any strides, so that neither has to be packed.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector instructions read and write through pointers")
)]

use crate::kernels::{
    product::{self, Target, View},
    simd::{Level, level},
};

/// `m` × `k` times `k` × `n`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// The left factor: element (i, p) stands at `i·row + p·column`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) column: usize,
}

/// Rows of contiguous elements, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// `c = keep·c + a·b`; rows of `c` are `stride` apart. Without `keep`, `c` isn't read.
pub(super) fn multiply(
    c: &mut [f32],
    stride: usize,
    keep: bool,
    size: Size,
    a: Left<'_>,
    b: Rows<'_>,
) {
    multiply_at(level(), c, stride, keep, size, (a, b));
}

/// [`multiply`] with the instructions of `level`, which the machine must have.
fn multiply_at(
    level: Level,
    c: &mut [f32],
    stride: usize,
    keep: bool,
    size: Size,
    (a, b): (Left<'_>, Rows<'_>),
) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        assert!(n <= stride || m == 1, "rows of a tile overlap");
        assert!((m - 1) * stride + n <= c.len(), "a tile beyond its slice");
        if k > 0 {
            assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len(), "left factor too short");
            assert!((k - 1) * b.stride + n <= b.data.len(), "right factor too short");
        }
        let strip = Strip {
            k,
            a: a.data.as_ptr(),
            a_row: a.row,
            a_column: a.column,
            b: b.data.as_ptr(),
            b_stride: b.stride,
            c: c.as_mut_ptr(),
            c_stride: stride,
            keep,
        };
        match level {
            // SAFETY: the caller's level is the machine's or below it; the assertions above keep every element
            // of the three matrices inside its slice, and `c` is borrowed mutably.
            Level::Avx512 => return unsafe { avx512::panels(strip, m, n) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2::panels(strip, m, n) },
            Level::Portable => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    let a = View::strided(a.data, m, k, a.row, a.column);
    let b = View::strided(b.data, k, n, b.stride, 1);
    product::product(&mut Target::new(c, stride), keep, 1.0, a, b);
}

/// Three matrices by their first elements.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Strip {
    k: usize,
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    keep: bool,
}

/// The loops, over the vectors that the surrounding module names. Functions inside are unsafe: the
/// caller vouches for the instructions and for every element that sizes and strides reach.
#[cfg(target_arch = "x86_64")]
macro_rules! loops {
    ($features:literal, $tallest:literal) => {
        /// Two vectors of columns at a time, then one, of which the last may have a part.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn panels(s: Strip, m: usize, n: usize) {
            let mut j = 0;
            while j < n {
                let panel = Strip { b: s.b.wrapping_add(j), c: s.c.wrapping_add(j), ..s };
                let pair = n - j >= 2 * WIDTH;
                let lanes = if pair { WIDTH } else { WIDTH.min(n - j) };
                // SAFETY: `lanes` columns of each vector exist.
                unsafe {
                    if pair {
                        strips::<2>(panel, m, lanes);
                    } else {
                        strips::<1>(panel, m, lanes);
                    }
                }
                j += if pair { 2 * WIDTH } else { lanes };
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn strips<const N: usize>(s: Strip, m: usize, lanes: usize) {
            let mut i = 0;
            while i < m {
                let a = s.a.wrapping_add(i * s.a_row);
                let strip = Strip { a, c: s.c.wrapping_add(i * s.c_stride), ..s };
                // SAFETY: so many rows are left.
                unsafe {
                    match m - i {
                        1 => rows::<1, N>(strip, lanes),
                        2 | 3 => rows::<2, N>(strip, lanes),
                        4.. if m - i < $tallest => rows::<4, N>(strip, lanes),
                        _ => rows::<$tallest, N>(strip, lanes),
                    }
                }
                i += match m - i {
                    1 => 1,
                    2 | 3 => 2,
                    left if left < $tallest => 4,
                    _ => $tallest,
                };
            }
        }

        /// `M` rows by `N` vectors, in registers.
        #[target_feature(enable = $features)]
        unsafe fn rows<const M: usize, const N: usize>(s: Strip, lanes: usize) {
            let mut sums = [[zero(); N]; M];
            let (mut a, mut b) = (s.a, s.b);
            for _ in 0..s.k {
                let mut right = [zero(); N];
                for (j, right) in right.iter_mut().enumerate() {
                    let from = b.wrapping_add(j * WIDTH);
                    // SAFETY: rows of the right factor have `N` vectors, a single one `lanes`.
                    *right = unsafe { if N == 1 { load_part(from, lanes) } else { load(from) } };
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the left factor has `M` rows and `k` columns.
                    let left = splat(unsafe { *a.wrapping_add(i * s.a_row) });
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = fma(left, right, *sum);
                    }
                }
                a = a.wrapping_add(s.a_column);
                b = b.wrapping_add(s.b_stride);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    let to = s.c.wrapping_add(i * s.c_stride + j * WIDTH);
                    // SAFETY: as for the right factor.
                    unsafe {
                        if N == 1 {
                            let sum = if s.keep { add(load_part(to, lanes), sum) } else { sum };
                            store_part(to, lanes, sum);
                        } else {
                            store(to, if s.keep { add(load(to), sum) } else { sum });
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps as add, _mm512_fmadd_ps as fma, _mm512_loadu_ps as load,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps as splat,
        _mm512_setzero_ps as zero, _mm512_storeu_ps as store,
    };

    use super::Strip;

    const WIDTH: usize = 16;

    fn mask(lanes: usize) -> u16 {
        u16::MAX >> (16 - lanes)
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn load_part(from: *const f32, lanes: usize) -> __m512 {
        // SAFETY: the caller has `lanes` elements there; the mask leaves the others alone.
        unsafe { _mm512_maskz_loadu_ps(mask(lanes), from) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn store_part(to: *mut f32, lanes: usize, v: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, mask(lanes), v) }
    }

    loops!("avx512f", 8);
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm256_add_ps as add, _mm256_fmadd_ps as fma, _mm256_loadu_ps as load,
        _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_set1_ps as splat,
        _mm256_setzero_ps as zero, _mm256_storeu_ps as store,
    };

    use super::Strip;

    const WIDTH: usize = 8;

    /// Eight lanes on, eight off: a mask of `lanes` starts at `8 - lanes`.
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[target_feature(enable = "avx2")]
    fn mask(lanes: usize) -> __m256i {
        let from = &MASKS[8 - lanes..16 - lanes];
        // SAFETY: these are eight numbers.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn load_part(from: *const f32, lanes: usize) -> __m256 {
        // SAFETY: the caller has `lanes` elements there; the mask leaves the others alone.
        unsafe { _mm256_maskload_ps(from, mask(lanes)) }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn store_part(to: *mut f32, lanes: usize, v: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_maskstore_ps(to, mask(lanes), v) }
    }

    loops!("avx2,fma", 6);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    /// Checks one size with the left factor by rows or by columns; `c` has two columns more, which
    /// stay as they are.
    fn check(at: Level, size: Size, by_rows: bool, keep: bool) {
        let Size { m, n, k } = size;
        let key = Key::new(3);
        let (a, b) = (key.with(1).normals(m * k), key.with(2).normals(k * (n + 1)));
        let before = key.with(3).normals(m * (n + 2));
        let (row, column) = if by_rows { (k, 1) } else { (1, m) };
        let mut c = before.clone();
        let factors = (Left { data: &a, row, column }, Rows { data: &b, stride: n + 1 });
        multiply_at(at, &mut c, n + 2, keep, size, factors);
        for (at_c, (&found, &before)) in c.iter().zip(&before).enumerate() {
            let (i, j) = (at_c / (n + 2), at_c % (n + 2));
            if j >= n {
                assert_eq!(found, before, "{at:?}, {size:?}: beyond the columns");
                continue;
            }
            let term = |p: usize| f64::from(a[i * row + p * column] * b[p * (n + 1) + j]);
            let kept = if keep { f64::from(before) } else { 0.0 };
            let expected = kept + (0..k).map(term).sum::<f64>();
            let near = (f64::from(found) - expected).abs() < 1e-4;
            assert!(near, "{at:?}, {size:?} [{i}, {j}]: {found}, expected {expected}");
        }
    }

    #[test] // at every level that the machine has, its own and those below
    fn tiles_of_every_size_equal_sums_of_products() {
        for at in [Level::Portable, Level::Avx2, Level::Avx512] {
            if at > level() {
                continue;
            }
            for m in 1..=17 {
                for n in [1, 5, 8, 13, 16, 17, 24, 31, 32, 40, 49, 64] {
                    for (k, flag) in [(0, true), (1, false), (12, true), (33, false)] {
                        check(at, Size { m, n, k }, flag, flag);
                        check(at, Size { m, n, k }, flag, !flag);
                    }
                }
            }
        }
    }
}
