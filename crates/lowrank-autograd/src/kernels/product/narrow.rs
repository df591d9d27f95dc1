//! Rounding f32 to pairs of bf16 with the machine's own instruction.

#![expect(unsafe_code, reason = "vector instructions, which read and write through pointers")]

use std::arch::x86_64::*;

use half::bf16;

use super::tile::transpose_rows;
use crate::kernels::simd::prefetch_early;

/// Lanes of a vector.
const LANES: usize = 16;

/// Rounds up to 32 elements to pairs, with zeros after them.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn pairs(from: &[f32], scale: f32, to: &mut [u32; LANES]) {
    round_vector(from, 0, _mm512_set1_ps(scale), to);
}

/// Rounds the first `len` elements of lines to pairs: `to` holds vector after vector of the pairs of
/// `HEIGHT` lines, with zeros after a line's end.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn lines<'a, const HEIGHT: usize>(
    lines: impl Iterator<Item = &'a [f32]>,
    len: usize,
    scale: f32,
    to: &mut [u32],
) {
    let scale = _mm512_set1_ps(scale);
    let to = to.as_chunks_mut::<LANES>().0;
    for (i, line) in lines.enumerate() {
        let (whole, rest) = line.get(..len).unwrap_or_default().as_chunks::<{ 2 * LANES }>();
        let (wide, ends) = to.split_at_mut((whole.len() * HEIGHT).min(to.len()));
        for (from, to) in whole.iter().zip(wide.chunks_exact_mut(HEIGHT)) {
            round_whole(from, scale, &mut to[i]);
        }
        for (part, to) in ends.chunks_exact_mut(HEIGHT).enumerate() {
            round_vector(rest, part * 2 * LANES, scale, &mut to[i]);
        }
    }
}

/// [`lines`] of bf16 as they are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn copy_lines<'a, const HEIGHT: usize>(
    lines: impl Iterator<Item = &'a [bf16]> + Clone,
    len: usize,
    to: &mut [u32],
) {
    const TILES: usize = 8; // few enough for the first-level cache
    let to = to.as_chunks_mut::<LANES>().0;
    for (block, to) in to.chunks_mut(TILES * HEIGHT).enumerate() {
        for (i, line) in lines.clone().enumerate() {
            let line = line.get(..len).unwrap_or_default();
            for (part, to) in to.chunks_exact_mut(HEIGHT).enumerate() {
                let pairs = load_pairs(line, (block * TILES + part) * 2 * LANES);
                // SAFETY: the target is one vector.
                unsafe { _mm512_storeu_si512(to[i].as_mut_ptr().cast(), pairs) };
            }
        }
    }
}

/// So many elements further on, lines that are transposed are asked for.
const AHEAD: usize = 2 * 2 * LANES;

/// Packs the pairs of 32 lines of bf16, step after step; zeros after a line's end. All lines are
/// read side by side, since memory then has many of their reads under way.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn transpose_lines<'a>(line: impl Fn(usize) -> &'a [bf16], to: &mut [u32]) {
    let mut lines = [&[][..]; 2 * LANES];
    lines.iter_mut().enumerate().for_each(|(i, to)| *to = line(i));
    let shortest = lines.iter().map(|line| line.len()).min().unwrap_or_default();
    for (part, to) in to.chunks_exact_mut(2 * LANES * LANES).enumerate() {
        let first = part * 2 * LANES;
        lines.iter().for_each(|line| prefetch_early(line, first + AHEAD));
        for (half, lines) in lines.as_chunks::<LANES>().0.iter().enumerate() {
            let mut rows = [_mm512_setzero_si512(); LANES];
            if first + 2 * LANES <= shortest {
                for i in 0..LANES {
                    // SAFETY: the line has 32 elements from `first` on.
                    rows[i] = unsafe { _mm512_loadu_si512(lines[i].as_ptr().add(first).cast()) };
                }
            } else {
                for i in 0..LANES {
                    rows[i] = load_pairs(lines[i], first);
                }
            }
            // SAFETY: the target holds 16 steps of 32 lanes.
            unsafe {
                transpose_rows(rows, to[half * LANES..].as_mut_ptr(), 2 * LANES, u16::MAX);
            }
        }
    }
}

/// Pairs of a line from its element `first` on, with zeros after the end.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_pairs(line: &[bf16], first: usize) -> __m512i {
    let rest = line.get(first..).unwrap_or_default();
    let mask = if rest.len() < 2 * LANES { (1 << rest.len()) - 1 } else { u32::MAX };
    // SAFETY: the mask keeps the load inside the slice.
    unsafe { _mm512_maskz_loadu_epi16(mask, rest.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_whole(from: &[f32; 2 * LANES], scale: __m512, to: &mut [u32; LANES]) {
    // SAFETY: two vectors of f32, and one of pairs.
    unsafe {
        let low = _mm512_mul_ps(_mm512_loadu_ps(from.as_ptr()), scale);
        let high = _mm512_mul_ps(_mm512_loadu_ps(from.as_ptr().add(LANES)), scale);
        to.as_mut_ptr().cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low));
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn round_vector(from: &[f32], first: usize, scale: __m512, to: &mut [u32; LANES]) {
    let high = load(from, first + LANES, scale);
    let pairs = _mm512_cvtne2ps_pbh(high, load(from, first, scale));
    // SAFETY: the target is one vector.
    unsafe { to.as_mut_ptr().cast::<__m512bh>().write_unaligned(pairs) };
}

/// Rounds two rows from their element `first` on and weaves them, the first row's elements into
/// the low halves; zeros where a row ends before `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn round([low, high]: [&[f32]; 2], first: usize, scale: f32, to: &mut [u32]) {
    let scale = _mm512_set1_ps(scale);
    for (i, to) in to.chunks_mut(LANES).enumerate() {
        let at = first + i * LANES;
        let pairs = _mm512_cvtne2ps_pbh(load(high, at, scale), load(low, at, scale));
        // SAFETY: vectors of the same size.
        let pairs = unsafe { std::mem::transmute::<__m512bh, __m512i>(pairs) };
        let pairs = _mm512_permutexvar_epi16(weaving::<0, LANES>(), pairs);
        // SAFETY: the mask keeps the store inside the chunk.
        unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask(to.len()), pairs) };
    }
}

/// Weaves two rows of bf16 as [`round`] does.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn weave([low, high]: [&[bf16]; 2], first: usize, to: &mut [u32]) {
    for (i, to) in to.chunks_mut(2 * LANES).enumerate() {
        let at = first + i * 2 * LANES;
        let rows = [load_pairs(low, at), load_pairs(high, at)];
        // Elements of the second row are counted after those of the first.
        let orders = [weaving::<0, { 2 * LANES }>(), weaving::<LANES, { 3 * LANES }>()];
        for (order, to) in orders.into_iter().zip(to.chunks_mut(LANES)) {
            let pairs = _mm512_permutex2var_epi16(rows[0], order, rows[1]);
            // SAFETY: the mask keeps the store inside the chunk.
            unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask(to.len()), pairs) };
        }
    }
}

/// Lanes that [`weave_rows`] fills: 16 steps of 32.
pub(super) const WOVEN: usize = LANES * 2 * LANES;

/// [`weave`] of 32 elements of each of 32 rows, `stride` elements apart. With so few instructions a
/// row, reads of many rows are under way at once: more than that can't be asked for.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn weave_rows(from: &[bf16], stride: usize, to: &mut [u32]) {
    const HEIGHT: usize = 2 * LANES;
    assert!(from.len() >= (HEIGHT - 1) * stride + 2 * LANES, "rows end early");
    assert_eq!(to.len(), WOVEN);
    let orders = [weaving::<0, { 2 * LANES }>(), weaving::<LANES, { 3 * LANES }>()];
    for (step, to) in to.chunks_exact_mut(2 * LANES).enumerate() {
        let at = |row: usize| from.as_ptr().wrapping_add(row * stride);
        // SAFETY: the rows have 32 elements from here on, and the target two vectors.
        unsafe {
            let low = _mm512_loadu_si512(at(2 * step).cast());
            let high = _mm512_loadu_si512(at(2 * step + 1).cast());
            let to = to.as_mut_ptr().cast::<__m512i>();
            to.write_unaligned(_mm512_permutex2var_epi16(low, orders[0], high));
            to.add(1).write_unaligned(_mm512_permutex2var_epi16(low, orders[1], high));
        }
    }
}

/// [`weave_rows`] of f32, scaled and rounded.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn round_rows(from: &[f32], stride: usize, scale: f32, to: &mut [u32]) {
    const HEIGHT: usize = 2 * LANES;
    assert!(from.len() >= (HEIGHT - 1) * stride + 2 * LANES, "rows end early");
    assert_eq!(to.len(), WOVEN);
    let (order, scale) = (weaving::<0, LANES>(), _mm512_set1_ps(scale));
    for (step, to) in to.chunks_exact_mut(2 * LANES).enumerate() {
        for half in [0, LANES] {
            // SAFETY: the rows have 32 elements from here on, and the target two vectors.
            unsafe {
                let low = from.as_ptr().add(2 * step * stride + half);
                let [low, high] =
                    [low, low.add(stride)].map(|row| _mm512_mul_ps(_mm512_loadu_ps(row), scale));
                let pairs =
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                let pairs = _mm512_permutexvar_epi16(order, pairs);
                to.as_mut_ptr().add(half).cast::<__m512i>().write_unaligned(pairs);
            }
        }
    }
}

/// The order of a vector whose elements alternate: from number `first` on, and from `second` on.
#[target_feature(enable = "avx512f")]
fn weaving<const FIRST: usize, const SECOND: usize>() -> __m512i {
    let order = const {
        let mut order = [0_u16; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            order[2 * i] = (FIRST + i) as u16;
            order[2 * i + 1] = (SECOND + i) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: an array of a vector's size.
    unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
}

/// A vector of scaled elements from `first` on, with zeros after the end.
#[target_feature(enable = "avx512f")]
fn load(from: &[f32], first: usize, scale: __m512) -> __m512 {
    let rest = from.get(first..).unwrap_or_default();
    // SAFETY: the mask keeps the load inside the slice.
    let loaded = unsafe { _mm512_maskz_loadu_ps(mask(rest.len()), rest.as_ptr()) };
    _mm512_mul_ps(loaded, scale)
}

/// The first `len` lanes.
fn mask(len: usize) -> u16 {
    if len < LANES { (1 << len) - 1 } else { u16::MAX }
}

/// 32 numbers as sums of three vectors of bf16, the largest part first. Finite numbers beyond the
/// range of bf16 keep to it; one that isn't finite has parts that aren't.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split([mut low, mut high]: [__m512; 2]) -> [__m512i; 3] {
    // The bits of the largest bf16.
    let most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f7f_0000));
    let least = _mm512_sub_ps(_mm512_setzero_ps(), most);
    let within = |v| _mm512_max_ps(least, _mm512_min_ps(most, v)); // a NaN stays
    let mut parts = [_mm512_setzero_si512(); 3];
    let mut rounded = _mm512_cvtne2ps_pbh(within(high), within(low));
    for part in &mut parts {
        // SAFETY: vectors of the same size.
        *part = unsafe { std::mem::transmute::<__m512bh, __m512i>(rounded) };
        low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(*part)));
        high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64::<1>(*part)));
        rounded = _mm512_cvtne2ps_pbh(high, low);
    }
    parts
}

/// The bits of the parts of [`split`] of up to 32 numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn parts(numbers: &[f32]) -> [[u16; 2 * LANES]; 3] {
    let one = _mm512_set1_ps(1.0);
    let parts = split([load(numbers, 0, one), load(numbers, LANES, one)]);
    // SAFETY: as many bits.
    parts.map(|part| unsafe { std::mem::transmute::<__m512i, [u16; 2 * LANES]>(part) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widened(pairs: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(pairs)))
}

/// The parts of [`split`] of the first `len` elements of lines: `to` holds, one 32 elements after
/// another, each part's pairs of `HEIGHT` lines.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn split_lines<'a, const HEIGHT: usize>(
    lines: impl Iterator<Item = &'a [f32]>,
    len: usize,
    scale: f32,
    to: &mut [u32],
) {
    let scale = _mm512_set1_ps(scale);
    let to = to.as_chunks_mut::<LANES>().0;
    for (i, line) in lines.enumerate() {
        let line = line.get(..len).unwrap_or_default();
        for (tile, to) in to.chunks_exact_mut(3 * HEIGHT).enumerate() {
            let at = tile * 2 * LANES;
            let parts = split([load(line, at, scale), load(line, at + LANES, scale)]);
            for (part, to) in parts.into_iter().zip(to.chunks_exact_mut(HEIGHT)) {
                // SAFETY: the target is one vector.
                unsafe { _mm512_storeu_si512(to[i].as_mut_ptr().cast(), part) };
            }
        }
    }
}

/// The parts of [`split`] of the pairs of 32 lines, 16 steps after another: each part's, step after
/// step.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn split_transposed<'a>(line: impl Fn(usize) -> &'a [f32], to: &mut [u32]) {
    let scale = _mm512_set1_ps(1.0);
    for half in [0, LANES] {
        let mut lines = [&[][..]; LANES];
        lines.iter_mut().enumerate().for_each(|(i, to)| *to = line(half + i));
        for (tile, to) in to.chunks_exact_mut(3 * 2 * LANES * LANES).enumerate() {
            let at = tile * 2 * LANES;
            let mut rows = [[_mm512_setzero_si512(); LANES]; 3];
            for i in 0..LANES {
                let parts = split([load(lines[i], at, scale), load(lines[i], at + LANES, scale)]);
                for part in 0..3 {
                    rows[part][i] = parts[part];
                }
            }
            for (rows, to) in rows.into_iter().zip(to.chunks_exact_mut(2 * LANES * LANES)) {
                // SAFETY: the target holds 16 steps of 32 lanes.
                unsafe { transpose_rows(rows, to[half..].as_mut_ptr(), 2 * LANES, u16::MAX) };
            }
        }
    }
}

/// The parts of [`split`] of two rows from their element `first` on, woven as [`round`] does: 32
/// lanes of each part, so many lanes apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn split_woven([low, high]: [&[f32]; 2], first: usize, to: &mut [u32], apart: usize) {
    let scale = _mm512_set1_ps(1.0);
    for half in [0, LANES] {
        let at = first + half;
        let parts = split([load(low, at, scale), load(high, at, scale)]);
        for (i, part) in parts.into_iter().enumerate() {
            let pairs = _mm512_permutexvar_epi16(weaving::<0, LANES>(), part);
            let to = &mut to[i * apart + half..][..LANES];
            // SAFETY: the target is one vector.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs) };
        }
    }
}
