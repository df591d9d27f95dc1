//! The innermost loops: one tile of the result from two packed panels, in registers.
//!
//! A panel holds, step by step of the inner dimension, one 32-bit lane for each row (or column) of
//! the tile: an f32, or a pair of bf16 from two steps.

#![expect(unsafe_code, reason = "vector instructions and packed panels are read through pointers")]

use std::arch::x86_64::*;

/// Two packed panels and how many steps they hold.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) steps: usize,
    /// `rows` lanes a step.
    pub(crate) a: *const u32,
    /// A tile's width of lanes a step.
    pub(crate) b: *const u32,
}

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The tile's first element.
    pub(crate) to: *mut f32,
    pub(crate) row_stride: usize,
    /// Columns that exist: at most a tile's width.
    pub(crate) columns: usize,
    /// Whether the tile is added to what stands there.
    pub(crate) add: bool,
    /// One number for each column that is added as well, or null.
    pub(crate) bias: *const f32,
}

/// A tile kernel: multiplies `main` and then `tail` (f32), for a number of rows.
pub(crate) type Kernel = unsafe fn(Run, Run, Place);

/// Puts a row of 32 sums where it belongs, with bias and what stood there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put(place: &Place, row: usize, sums: [__m512; 2]) {
    let mask = u32::MAX >> (32 - place.columns as u32);
    for (half, mut sum) in sums.into_iter().enumerate() {
        let mask = (mask >> (16 * half)) as u16;
        let to = place.to.wrapping_add(row * place.row_stride + 16 * half);
        // SAFETY: the caller's place has this row of `columns` elements, and so many biases; the
        // masks touch nothing beyond.
        unsafe {
            if !place.bias.is_null() {
                let bias = place.bias.wrapping_add(16 * half);
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, bias));
            }
            if place.add {
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to));
            }
            _mm512_mask_storeu_ps(to, mask, sum);
        }
    }
}

/// Defines `$name<ROWS>`: a tile of `ROWS` × 32 over AVX-512; `$dot` multiplies lanes of `main`.
macro_rules! avx512_tile {
    ($(#[$meta:meta])* $name:ident, $features:literal, $dot:expr) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize>(main: Run, tail: Run, place: Place) {
            // SAFETY: the caller's panels hold `steps` steps of `ROWS` and 32 lanes, and `place`
            // has `ROWS` rows of `columns` elements, beyond which the masks touch nothing.
            unsafe {
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                for row in 0..ROWS {
                    let to = place.to.wrapping_add(row * place.row_stride);
                    _mm_prefetch::<_MM_HINT_T0>(to.cast());
                    _mm_prefetch::<_MM_HINT_T0>(to.wrapping_add(16).cast());
                }
                let (mut a, mut b) = (main.a, main.b);
                for _ in 0..main.steps {
                    let b0 = _mm512_loadu_ps(b.cast());
                    let b1 = _mm512_loadu_ps(b.add(16).cast());
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let lane = _mm512_set1_ps(a.add(row).cast::<f32>().read_unaligned());
                        sum[0] = $dot(lane, b0, sum[0]);
                        sum[1] = $dot(lane, b1, sum[1]);
                    }
                    a = a.add(ROWS);
                    b = b.add(32);
                }
                let (mut a, mut b) = (tail.a, tail.b);
                for _ in 0..tail.steps {
                    let b0 = _mm512_loadu_ps(b.cast());
                    let b1 = _mm512_loadu_ps(b.add(16).cast());
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let lane = _mm512_set1_ps(a.add(row).cast::<f32>().read_unaligned());
                        sum[0] = _mm512_fmadd_ps(lane, b0, sum[0]);
                        sum[1] = _mm512_fmadd_ps(lane, b1, sum[1]);
                    }
                    a = a.add(ROWS);
                    b = b.add(32);
                }
                for (row, sum) in sums.iter().enumerate() {
                    put(&place, row, *sum);
                }
            }
        }
    };
}

avx512_tile!(avx512_f32, "avx512f,avx512bw,avx512dq,avx512vl", |a, b, sum| _mm512_fmadd_ps(
    a, b, sum
));
avx512_tile!(
    avx512_bf16,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    |a: __m512, b: __m512, sum| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512, __m512bh>(a),
        std::mem::transmute::<__m512, __m512bh>(b)
    )
);

/// A tile of `ROWS` × 16 over AVX2.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_f32<const ROWS: usize>(main: Run, tail: Run, place: Place) {
    // SAFETY: as in `avx512_tile`, with panels of 16 columns; a tile that isn't whole goes through
    // a buffer.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for run in [main, tail] {
            let (mut a, mut b) = (run.a, run.b);
            for _ in 0..run.steps {
                let b0 = _mm256_loadu_ps(b.cast());
                let b1 = _mm256_loadu_ps(b.add(8).cast());
                for (row, sum) in sums.iter_mut().enumerate() {
                    let lane = _mm256_set1_ps(a.add(row).cast::<f32>().read_unaligned());
                    sum[0] = _mm256_fmadd_ps(lane, b0, sum[0]);
                    sum[1] = _mm256_fmadd_ps(lane, b1, sum[1]);
                }
                a = a.add(ROWS);
                b = b.add(16);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            let to = place.to.wrapping_add(row * place.row_stride);
            let mut buffer = [0.0_f32; 16];
            _mm256_storeu_ps(buffer.as_mut_ptr(), sum[0]);
            _mm256_storeu_ps(buffer.as_mut_ptr().add(8), sum[1]);
            if !place.bias.is_null() {
                for (i, sum) in buffer.iter_mut().enumerate().take(place.columns) {
                    *sum += *place.bias.add(i);
                }
            }
            let to = std::slice::from_raw_parts_mut(to, place.columns);
            if place.add {
                to.iter_mut().zip(&buffer).for_each(|(to, sum)| *to += sum);
            } else {
                to.copy_from_slice(&buffer[..place.columns]);
            }
        }
    }
}

/// The kernels for 1, 2, … rows.
macro_rules! by_rows {
    ($kernel:ident: $($rows:literal)*) => { [$($kernel::<$rows>),*] };
}

/// AVX-512, f32: up to 14 rows by 32 columns.
pub(crate) static AVX512_F32: [Kernel; 14] = by_rows!(avx512_f32: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
/// AVX-512, pairs of bf16: up to 14 rows by 32 columns.
pub(crate) static AVX512_BF16: [Kernel; 14] =
    by_rows!(avx512_bf16: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
/// AVX2, f32: up to 6 rows by 16 columns.
pub(crate) static AVX2_F32: [Kernel; 6] = by_rows!(avx2_f32: 1 2 3 4 5 6);

/// Keeps the f32 multipliers busy, 24 independent sums a step.
#[target_feature(enable = "avx512f")]
pub(crate) fn spin_f32(steps: u32) {
    let mut sums = [_mm512_setzero_ps(); 24];
    let x = _mm512_set1_ps(std::hint::black_box(1.0));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, x, *sum);
        }
    }
    std::hint::black_box(sums);
}

/// The same for pairs of bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) fn spin_bf16(steps: u32) {
    let mut sums = [_mm512_setzero_ps(); 24];
    // SAFETY: both types are 512 bits without a meaning of their own.
    let x = unsafe {
        std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(std::hint::black_box(1.0)))
    };
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    std::hint::black_box(sums);
}

/// Transposes a block of 16 × 16 lanes: lane `j` of line `i` goes to `out[j·stride + i]`, for `i`
/// below `width` (at most 16).
///
/// # Safety
/// `out` has room for 15 strides and `width` lanes; the machine has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose_avx512(
    lines: &[[u32; 16]; 16],
    out: *mut u32,
    stride: usize,
    width: usize,
) {
    let mut rows = [_mm512_setzero_si512(); 16];
    for i in 0..16 {
        // SAFETY: the lines are whole arrays.
        rows[i] = unsafe { _mm512_loadu_si512(lines[i].as_ptr().cast()) };
    }
    let mask = (u32::MAX >> (32 - width as u32)) as u16;
    // SAFETY: the caller's promise.
    unsafe { transpose_rows(rows, out, stride, mask) };
}

/// [`transpose_avx512`] of lines in registers; `mask` has a bit for each line that is stored.
///
/// # Safety
/// `out` has room for 15 strides and the lanes of the mask.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose_rows(rows: [__m512i; 16], out: *mut u32, stride: usize, mask: u16) {
    let mut t = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Groups of 4 lines: `u[4g + c]` has column `c` of every 128-bit part.
    let mut u = [_mm512_setzero_si512(); 16];
    for g in 0..4 {
        u[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
        u[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
        u[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
        u[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
    }
    let store = |column: usize, v: __m512i| {
        // SAFETY: the caller's promise; the mask stores nothing else.
        unsafe { _mm512_mask_storeu_epi32(out.add(column * stride).cast(), mask, v) };
    };
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0b1000_1000>(u[c], u[4 + c]);
        let high = _mm512_shuffle_i32x4::<0b1101_1101>(u[c], u[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0b1000_1000>(u[8 + c], u[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0b1101_1101>(u[8 + c], u[12 + c]);
        store(c, _mm512_shuffle_i32x4::<0b1000_1000>(low, low2));
        store(c + 4, _mm512_shuffle_i32x4::<0b1000_1000>(high, high2));
        store(c + 8, _mm512_shuffle_i32x4::<0b1101_1101>(low, low2));
        store(c + 12, _mm512_shuffle_i32x4::<0b1101_1101>(high, high2));
    }
}

/// [`transpose_avx512`] in blocks of 8 × 8 over AVX2.
///
/// # Safety
/// `out` has room for 15 strides and `width` lanes; the machine has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn transpose_avx2(
    lines: &[[u32; 16]; 16],
    out: *mut u32,
    stride: usize,
    width: usize,
) {
    for i in (0..width).step_by(8) {
        for j in [0, 8] {
            // SAFETY: the loads stay inside the lines, the stores where the caller has room.
            unsafe {
                let row = |k: usize| _mm256_loadu_ps(lines[i + k].as_ptr().add(j).cast());
                let mut t = [_mm256_setzero_ps(); 8];
                for k in 0..4 {
                    t[2 * k] = _mm256_unpacklo_ps(row(2 * k), row(2 * k + 1));
                    t[2 * k + 1] = _mm256_unpackhi_ps(row(2 * k), row(2 * k + 1));
                }
                let mut u = [_mm256_setzero_ps(); 8];
                for g in 0..2 {
                    u[4 * g] = _mm256_shuffle_ps::<0x44>(t[4 * g], t[4 * g + 2]);
                    u[4 * g + 1] = _mm256_shuffle_ps::<0xEE>(t[4 * g], t[4 * g + 2]);
                    u[4 * g + 2] = _mm256_shuffle_ps::<0x44>(t[4 * g + 1], t[4 * g + 3]);
                    u[4 * g + 3] = _mm256_shuffle_ps::<0xEE>(t[4 * g + 1], t[4 * g + 3]);
                }
                for c in 0..4 {
                    let first = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
                    let second = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
                    for (column, v) in [(c, first), (c + 4, second)] {
                        let to = out.add((j + column) * stride + i);
                        if width - i >= 8 {
                            _mm256_storeu_ps(to.cast(), v);
                        } else {
                            let mut lanes = [0.0_f32; 8];
                            _mm256_storeu_ps(lanes.as_mut_ptr(), v);
                            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to.cast(), width - i);
                        }
                    }
                }
            }
        }
    }
}
