//! The softmax of blocks of scores, a query in each row, and its gradient.

#![expect(unsafe_code, reason = "vector instructions, which read and write through pointers")]

use std::{arch::x86_64::*, ops::Range};

use half::bf16;

use crate::kernels::product::{Amx, Block, SIDE, Turn};

/// Which of a panel's keys a row sees: a bit each.
pub(super) fn seen_of_panel(seen: &Range<usize>, panel: usize) -> u32 {
    let below = |key: usize| {
        let bits = key.saturating_sub(panel * SIDE);
        if bits < SIDE { (1_u32 << bits) - 1 } else { u32::MAX }
    };
    below(seen.end) & !below(seen.start)
}

/// `2ˣ` to within 3 units in the last place where it is a normal number, 0 for -∞; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    /// The polynomial of least relative error from 0 to 1 that is 1 at 0.
    const P: [f32; 6] =
        [1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_031, 0.001_867_13];
    const FLOOR: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    let f = _mm512_reduce_ps::<FLOOR>(x); // 0 for an infinity
    let mut p = _mm512_set1_ps(P[5]);
    for c in [P[4], P[3], P[2], P[1], P[0]] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, x) // by 2 to the power of x, rounded down
}

/// A row of a block.
///
/// # Safety
/// The row exists.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(block: &Block, row: usize) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let from = block.0.as_ptr().add(row * SIDE);
        [_mm512_load_ps(from), _mm512_load_ps(from.add(16))]
    }
}

/// Halves of 16 bits.
fn halves(mask: u32) -> [u16; 2] {
    [mask as u16, (mask >> 16) as u16]
}

/// The masks of a row's panels, of which most are seen whole.
struct Seen<'a> {
    keys: &'a Range<usize>,
    whole: Range<usize>,
}

impl<'a> Seen<'a> {
    fn new(keys: &'a Range<usize>) -> Self {
        Self { keys, whole: keys.start.div_ceil(SIDE)..keys.end / SIDE }
    }

    fn masks(&self, panel: usize) -> [u16; 2] {
        let whole = self.whole.contains(&panel);
        halves(if whole { u32::MAX } else { seen_of_panel(self.keys, panel) })
    }
}

/// How products become exponents of two.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    /// What scores are of products.
    pub(super) scale: f32,
    /// What is taken from each exponent.
    pub(super) down: f32,
}

/// The running softmax of 32 rows.
#[repr(align(64))]
pub(super) struct Running {
    /// The largest score so far.
    pub(super) max: [f32; SIDE],
    /// `Σ 2^-down·exp(score - max)` so far.
    pub(super) sum: [f32; SIDE],
    /// What earlier results have to be multiplied with.
    pub(super) keep: [f32; SIDE],
}

impl Running {
    pub(super) fn new() -> Self {
        Self { max: [f32::NEG_INFINITY; SIDE], sum: [0.0; SIDE], keep: [1.0; SIDE] }
    }
}

/// Turns rows' products with the keys that each sees into `2^-down·exp(score - max)` in `p`, and the
/// others into zeros; `max` is of all keys so far. Rows beyond `seen` are left alone.
///
/// With `2^down` no less than the number of keys, no sum of these numbers and no sum of values by
/// them overflows, whatever finite numbers the values are.
pub(super) fn advance(
    _: Amx,
    scores: &[Block],
    seen: &[Range<usize>],
    scale: Scale,
    so_far: &mut Running,
    p: &mut [Turn],
) {
    assert!(seen.len() <= SIDE && scores.len() == p.len());
    // SAFETY: the machine has the instructions, and the rows exist.
    unsafe { advance_rows(scores, seen, scale, so_far, p) }
}

/// # Safety
/// There are at most 32 rows.
#[target_feature(enable = "avx512f,avx512dq,avx512bf16")]
unsafe fn advance_rows(
    scores: &[Block],
    seen: &[Range<usize>],
    Scale { scale, down }: Scale,
    so_far: &mut Running,
    p: &mut [Turn],
) {
    let scale = _mm512_set1_ps(scale);
    let mut max = so_far.max;
    for (row, (seen, max)) in seen.iter().map(Seen::new).zip(&mut max).enumerate() {
        // SAFETY: the row exists.
        *max = max.max(unsafe { largest(scores, row, &seen, scale) });
    }
    let mut shift = [0.0; SIDE];
    turn_to(so_far, &max, &mut shift);
    let (log2e, down) = (_mm512_set1_ps(std::f32::consts::LOG2_E), _mm512_set1_ps(down));
    for (row, seen) in seen.iter().map(Seen::new).enumerate() {
        let shift = _mm512_set1_ps(shift[row]);
        let mut sums = [_mm512_setzero_ps(); 2];
        for (panel, (scores, p)) in scores.iter().zip(&mut *p).enumerate() {
            let masks = seen.masks(panel);
            // SAFETY: the row exists.
            let s = unsafe { load(scores, row) };
            let mut e = [_mm512_setzero_ps(); 2];
            for h in 0..2 {
                let below = _mm512_sub_ps(_mm512_mul_ps(s[h], scale), shift);
                e[h] = exp2(_mm512_fmsub_ps(below, log2e, down));
                e[h] = _mm512_maskz_mov_ps(masks[h], e[h]);
                sums[h] = _mm512_add_ps(sums[h], e[h]);
            }
            // SAFETY: as above.
            unsafe {
                let to = p.0.as_mut_ptr().cast::<__m512bh>().add(row);
                to.write(_mm512_cvtne2ps_pbh(e[1], e[0]));
            }
        }
        so_far.sum[row] += _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
    }
}

/// A row's largest score; a NaN never counts as larger.
///
/// # Safety
/// The row exists.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn largest(scores: &[Block], row: usize, seen: &Seen<'_>, scale: __m512) -> f32 {
    let mut largest = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    for (panel, scores) in scores.iter().enumerate() {
        let masks = seen.masks(panel);
        // SAFETY: the caller's promise.
        let s = unsafe { load(scores, row) };
        for h in 0..2 {
            let s = _mm512_mul_ps(s[h], scale);
            // Of two operands, one not a number, it takes the second.
            largest[h] = _mm512_mask_max_ps(largest[h], masks[h], s, largest[h]);
        }
    }
    _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]))
}

/// Makes the running softmax one of these maxima; `shift` is them, or 0 where nothing was seen yet.
#[target_feature(enable = "avx512f,avx512dq")]
fn turn_to(so_far: &mut Running, max: &[f32; SIDE], shift: &mut [f32; SIDE]) {
    let none = _mm512_set1_ps(f32::NEG_INFINITY);
    let log2e = _mm512_set1_ps(std::f32::consts::LOG2_E);
    for half in [0, 16] {
        // SAFETY: there are 16 numbers from here on.
        unsafe {
            let new = _mm512_loadu_ps(max.as_ptr().add(half));
            let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(new, none);
            let new_shift = _mm512_maskz_mov_ps(seen, new);
            let old = so_far.max.as_mut_ptr().add(half);
            let below = _mm512_sub_ps(_mm512_loadu_ps(old), new_shift);
            let keep = exp2(_mm512_mul_ps(below, log2e));
            let sum = so_far.sum.as_mut_ptr().add(half);
            _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), keep));
            _mm512_storeu_ps(so_far.keep.as_mut_ptr().add(half), keep);
            _mm512_storeu_ps(shift.as_mut_ptr().add(half), new_shift);
            _mm512_storeu_ps(old, new);
        }
    }
}

/// What the backward pass knows of 32 query rows; zeros for rows that don't exist.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The largest score and `1/Σ exp(score - max)`.
    pub(super) max: [f32; SIDE],
    pub(super) inverse: [f32; SIDE],
    /// `D = Σ dy·y`
    pub(super) dot: [f32; SIDE],
}

/// Probabilities of a block and the gradients of its scores, as factors of the products.
pub(super) struct Factors<'a> {
    /// Rows of right factors.
    pub(super) p: &'a mut Turn,
    pub(super) ds: &'a mut Turn,
    /// Rows of a left factor.
    pub(super) ds_left: &'a mut Turn,
}

/// With `p` of the scores and `dp` `= dy·vᵀ`: `ds = p·(dp - D)`. Row `i` sees the keys `seen[i]`,
/// a bit each.
pub(super) fn differentiate(
    _: Amx,
    scale: f32,
    [scores, dp]: [&Block; 2],
    known: &Known,
    seen: &[u32; SIDE],
    to: Factors<'_>,
) {
    // SAFETY: the machine has the instructions.
    unsafe { differentiate_rows(scale, [scores, dp], known, seen, to) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
fn differentiate_rows(
    scale: f32,
    [scores, dp]: [&Block; 2],
    known: &Known,
    seen: &[u32; SIDE],
    to: Factors<'_>,
) {
    let (scale, log2e) = (_mm512_set1_ps(scale), _mm512_set1_ps(std::f32::consts::LOG2_E));
    let order = weaving();
    for pair in 0..SIDE / 2 {
        let (mut p, mut ds) = ([[_mm512_setzero_ps(); 2]; 2], [[_mm512_setzero_ps(); 2]; 2]);
        for i in 0..2 {
            let row = 2 * pair + i;
            let masks = halves(seen[row]);
            let [max, inverse, dot] =
                [&known.max, &known.inverse, &known.dot].map(|of| _mm512_set1_ps(of[row]));
            // SAFETY: there are 32 rows.
            let (s, dp) = unsafe { (load(scores, row), load(dp, row)) };
            for h in 0..2 {
                let below = _mm512_sub_ps(_mm512_mul_ps(s[h], scale), max);
                let e = exp2(_mm512_mul_ps(below, log2e));
                p[i][h] = _mm512_maskz_mul_ps(masks[h], e, inverse);
                ds[i][h] = _mm512_maskz_mul_ps(masks[h], p[i][h], _mm512_sub_ps(dp[h], dot));
            }
            // SAFETY: as above.
            unsafe {
                let to = to.ds_left.0.as_mut_ptr().cast::<__m512bh>();
                to.add(row).write(_mm512_cvtne2ps_pbh(ds[i][1], ds[i][0]));
            }
        }
        for h in 0..2 {
            // SAFETY: vectors of the same size, and 16 pairs of rows of two vectors.
            unsafe {
                for (of, to) in [(&p, &mut *to.p), (&ds, &mut *to.ds)] {
                    let pairs = _mm512_cvtne2ps_pbh(of[1][h], of[0][h]);
                    let pairs = std::mem::transmute::<__m512bh, __m512i>(pairs);
                    let to = to.0.as_mut_ptr().cast::<__m512i>();
                    to.add(2 * pair + h).write(_mm512_permutexvar_epi16(order, pairs));
                }
            }
        }
    }
}

/// `Σ x·y`
pub(super) fn dot(_: Amx, x: &[bf16; SIDE], y: &[bf16; SIDE]) -> f32 {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn run(x: *const __m512bh, y: *const __m512bh) -> f32 {
        // SAFETY: the caller's promise.
        let (x, y) = unsafe { (x.read_unaligned(), y.read_unaligned()) };
        _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), x, y))
    }

    // SAFETY: the machine has the instructions, and either is a vector.
    unsafe { run(x.as_ptr().cast(), y.as_ptr().cast()) }
}

/// The order of a vector whose elements alternate between its halves.
#[target_feature(enable = "avx512f")]
fn weaving() -> __m512i {
    let order = const {
        let mut order = [0_u16; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: an array of a vector's size.
    unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
}

/// Multiplies the rows of a block with a factor each.
pub(super) fn scale_rows(_: Amx, block: &mut Block, factors: &[f32; SIDE]) {
    // SAFETY: the machine has AVX-512, and a row is two vectors.
    unsafe { run(block, factors) }

    #[target_feature(enable = "avx512f")]
    unsafe fn run(block: &mut Block, factors: &[f32; SIDE]) {
        for (row, &factor) in block.rows().iter_mut().zip(factors) {
            for half in [0, 16] {
                // SAFETY: the caller's promise.
                unsafe {
                    let at = row.as_mut_ptr().add(half);
                    let scaled = _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(factor));
                    _mm512_store_ps(at, scaled);
                }
            }
        }
    }
}

/// Rounds the rows of a block, each multiplied with a factor, to rows of `to`, `stride` elements
/// apart, as far as there are any.
pub(super) fn put_rows(
    _: Amx,
    block: &Block,
    factors: &[f32; SIDE],
    to: &mut [bf16],
    stride: usize,
) {
    // SAFETY: the machine has the instructions, and a row is two vectors.
    unsafe { run(block, factors, to, stride) }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn run(block: &Block, factors: &[f32; SIDE], to: &mut [bf16], stride: usize) {
        for (i, (to, &factor)) in to.chunks_mut(stride).zip(factors).enumerate() {
            let (Some(to), factor) = (to.first_chunk_mut::<SIDE>(), _mm512_set1_ps(factor)) else {
                return;
            };
            // SAFETY: the caller's promise.
            unsafe {
                let [low, high] = load(block, i).map(|v| _mm512_mul_ps(v, factor));
                to.as_mut_ptr().cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low));
            }
        }
    }
}
