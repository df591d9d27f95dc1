//! Functions of an element of each of some operands, all of bf16, in one pass: in f32 they are only
//! in registers. (Kernels of f32 read and write buffers that pieces are widened to and rounded from,
//! which takes as long as the arithmetic does.)

use half::bf16;

use crate::elements::Elements;

/// A function of `N` numbers with `M` results, as a type: a loop over it is compiled for it alone.
pub(crate) trait Each<const N: usize, const M: usize> {
    /// What it calls has to be `#[inline(always)]`, as it has to be itself.
    fn of(x: [f32; N]) -> [f32; M];
}

/// The results for every element of operands of one length, rounded; none if they aren't of bf16 or
/// the machine has no instructions to round them with.
pub(crate) fn each<F: Each<N, M>, const N: usize, const M: usize>(
    operands: [Elements<'_>; N],
) -> Option<[Vec<bf16>; M]> {
    vectors::each::<F, N, M>(all_bf16(operands)?)
}

/// The same of `d` columns of `n` rows, from the given one of each operand on; the results of a row
/// lie side by side: `[n, M·d]`.
pub(crate) fn each_in_rows<F: Each<N, M>, const N: usize, const M: usize>(
    size: [usize; 2],
    operands: [Elements<'_>; N],
    columns: [usize; N],
) -> Option<Vec<bf16>> {
    vectors::each_in_rows::<F, N, M>(size, all_bf16(operands)?, columns)
}

fn all_bf16<const N: usize>(operands: [Elements<'_>; N]) -> Option<[&[bf16]; N]> {
    let mut from: [&[bf16]; N] = [&[]; N];
    for (from, operand) in from.iter_mut().zip(operands) {
        let Elements::Bf16(elements) = operand else { return None };
        *from = elements;
    }
    Some(from)
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions, which read and write through pointers")]
mod vectors {
    use std::arch::x86_64::*;

    use half::bf16;
    use rayon::prelude::*;

    use super::Each;
    use crate::kernels::{
        buffer::{PIECE, piece_rows},
        simd::has_bf16,
    };

    /// Elements of a vector of f32.
    const LANES: usize = 16;
    /// Elements that are rounded at a time.
    const STEP: usize = 2 * LANES;

    /// Where results go; tasks write disjoint parts.
    #[derive(Clone, Copy)]
    struct Places<const M: usize>([*mut bf16; M]);

    // SAFETY: memory that tasks write apart.
    unsafe impl<const M: usize> Sync for Places<M> {}

    impl<const M: usize> Places<M> {
        fn from(&self, start: usize) -> [*mut bf16; M] {
            self.0.map(|place| place.wrapping_add(start))
        }
    }

    pub(super) fn each<F: Each<N, M>, const N: usize, const M: usize>(
        from: [&[bf16]; N],
    ) -> Option<[Vec<bf16>; M]> {
        if !has_bf16() {
            return None;
        }
        let len = from.iter().map(|from| from.len()).min().unwrap_or_default();
        let mut results: [Vec<bf16>; M] = std::array::from_fn(|_| Vec::with_capacity(len));
        let places = Places(results.each_mut().map(|result| result.as_mut_ptr()));
        (0..len.div_ceil(PIECE)).into_par_iter().with_max_len(1).for_each(|piece| {
            let start = piece * PIECE;
            let end = (start + PIECE).min(len);
            let parts = from.map(|from| &from[start..end]);
            // SAFETY: the results have room from `start` to `end`, and the machine has the
            // instructions.
            unsafe { run::<F, N, M>(parts, end - start, places.from(start)) };
        });
        // SAFETY: all pieces have been written.
        results.each_mut().iter_mut().for_each(|result| unsafe { result.set_len(len) });
        Some(results)
    }

    pub(super) fn each_in_rows<F: Each<N, M>, const N: usize, const M: usize>(
        [n, d]: [usize; 2],
        from: [&[bf16]; N],
        columns: [usize; N],
    ) -> Option<Vec<bf16>> {
        if !has_bf16() {
            return None;
        }
        let mut results = Vec::with_capacity(n * M * d);
        let places = Places([results.as_mut_ptr()]);
        let rows = piece_rows(M * d);
        (0..n.div_ceil(rows)).into_par_iter().with_max_len(1).for_each(|piece| {
            for row in piece * rows..((piece + 1) * rows).min(n) {
                let part = |i: usize| &from[i][row * (from[i].len() / n) + columns[i]..][..d];
                let [to] = places.from(row * M * d);
                let to = std::array::from_fn(|m| to.wrapping_add(m * d));
                // SAFETY: there is room for the row, and the machine has the instructions.
                unsafe { run::<F, N, M>(std::array::from_fn(part), d, to) };
            }
        });
        // SAFETY: all rows have been written.
        unsafe { results.set_len(n * M * d) };
        Some(results)
    }

    /// # Safety
    /// The operands have `len` elements, and the results room for as many.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn run<F: Each<N, M>, const N: usize, const M: usize>(
        from: [&[bf16]; N],
        len: usize,
        to: [*mut bf16; M],
    ) {
        let whole = len / STEP * STEP;
        for at in (0..whole).step_by(STEP) {
            let mut halves = [[_mm512_setzero_ps(); M]; 2];
            for (half, found) in halves.iter_mut().enumerate() {
                // SAFETY: there are 32 elements from `at` on.
                let x = from.map(|from| unsafe { widened(from.as_ptr().add(at + half * LANES)) });
                let mut y = [[0.0; LANES]; M];
                for lane in 0..LANES {
                    let of = F::of(std::array::from_fn(|n| x[n][lane]));
                    for m in 0..M {
                        y[m][lane] = of[m];
                    }
                }
                // SAFETY: as many bits.
                *found = y.map(|y| unsafe { std::mem::transmute::<[f32; LANES], __m512>(y) });
            }
            for m in 0..M {
                let rounded = _mm512_cvtne2ps_pbh(halves[1][m], halves[0][m]);
                // SAFETY: there is room for 32 elements from `at` on.
                unsafe { to[m].add(at).cast::<__m512bh>().write_unaligned(rounded) };
            }
        }
        if whole < len {
            let (mut last, mut found) = ([[bf16::ZERO; STEP]; N], [[bf16::ZERO; STEP]; M]);
            for (last, from) in last.iter_mut().zip(from) {
                last[..len - whole].copy_from_slice(&from[whole..len]);
            }
            // SAFETY: these are whole steps; of the results there is room for what is left.
            unsafe {
                let places = found.each_mut().map(|found| found.as_mut_ptr());
                run::<F, N, M>(last.each_ref().map(|last| &last[..]), STEP, places);
                for (to, found) in to.into_iter().zip(&found) {
                    to.add(whole).copy_from_nonoverlapping(found.as_ptr(), len - whole);
                }
            }
        }
    }

    /// # Safety
    /// There are 16 elements.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widened(from: *const bf16) -> [f32; LANES] {
        // SAFETY: the caller's promise; as many bits.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(from.cast::<__m256i>().read_unaligned());
            std::mem::transmute::<__m512i, [f32; LANES]>(_mm512_slli_epi32::<16>(bits))
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod vectors {
    use half::bf16;

    use super::Each;

    pub(super) fn each<F: Each<N, M>, const N: usize, const M: usize>(
        _from: [&[bf16]; N],
    ) -> Option<[Vec<bf16>; M]> {
        None
    }

    pub(super) fn each_in_rows<F: Each<N, M>, const N: usize, const M: usize>(
        _size: [usize; 2],
        _from: [&[bf16]; N],
        _columns: [usize; N],
    ) -> Option<Vec<bf16>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, kernels::elementwise::narrowed};

    /// `x·y + 1` and `x - y`.
    struct Both;

    impl Each<2, 2> for Both {
        #[inline(always)]
        fn of([x, y]: [f32; 2]) -> [f32; 2] {
            [x * y + 1.0, x - y]
        }
    }

    #[test]
    fn results_of_columns_lie_side_by_side() {
        for [n, d] in [[0, 3], [3, 0], [1, 1], [5, 31], [7, 32], [130, 33], [3, 5000]] {
            let [x, y] = [2, 3].map(|width| narrowed(&Key::new(1).normals(n * width * d)));
            let operands = [&x, &y].map(|x| Elements::Bf16(x));
            let Some(found) = each_in_rows::<Both, 2, 2>([n, d], operands, [d, 2 * d]) else {
                continue; // a machine without the instructions
            };
            let of = |i: usize| {
                let (row, column) = (i / (2 * d), i % (2 * d));
                let x = [x[row * 2 * d + d + column % d], y[row * 3 * d + 2 * d + column % d]];
                bf16::from_f32(Both::of(x.map(|x| x.to_f32()))[column / d])
            };
            assert!(found == (0..n * 2 * d).map(of).collect::<Vec<_>>(), "{n} rows of {d}");
        }
    }

    #[test]
    fn results_of_every_length_are_those_of_one_element_after_another() {
        for len in [0, 1, 15, 16, 31, 32, 33, 100, 4095, 4096, 4097, 10_001] {
            let [x, y] = [1, 2].map(|seed| narrowed(&Key::new(seed).normals(len)));
            let Some(found) = each::<Both, 2, 2>([&x, &y].map(|x| Elements::Bf16(x))) else {
                continue; // a machine without the instructions
            };
            for (i, found) in found.iter().enumerate() {
                let of = |(x, y): (&bf16, &bf16)| Both::of([x.to_f32(), y.to_f32()])[i];
                let expected: Vec<bf16> =
                    x.iter().zip(&y).map(|pair| bf16::from_f32(of(pair))).collect();
                assert!(*found == expected, "result {i} of {len}");
            }
        }
    }
}
