//! What happens to a tile of scores between the products. A tile holds one key in each row and
//! one query row in each lane, so that maxima and sums of a query's scores need no shuffling.

use half::bf16;

use super::tile::Rows;
use crate::kernels::simd::{exp_or_zero, tanh, vectorized};

/// Query rows are filled up to a multiple of this: the lanes of the widest vector.
pub(super) const LANES: usize = 16;

/// The running softmax of a block of query rows, in whole groups of lanes.
pub(super) struct Running<'a> {
    /// Largest score so far; -∞ before the first.
    pub(super) max: &'a mut [f32],
    /// Sum of `exp(score - max)` so far.
    pub(super) sum: &'a mut [f32],
    /// What the output so far has to be multiplied with before the next part is added.
    pub(super) keep: &'a mut [f32],
}

vectorized! {
    /// Turns the next scores into probabilities over all keys so far (online softmax,
    /// arXiv:1805.02867). They are at most 1 at any time, and with `keep` the output stays a mean
    /// of values: nothing overflows on the way to a finite result.
    pub(super) fn advance(scores: &mut [f32], running: Running<'_>) {
        let groups = running.max.len() / LANES;
        let tile = scores.as_chunks_mut::<LANES>().0;
        let keys = tile.len() / groups.max(1);
        let max = running.max.as_chunks_mut::<LANES>().0.iter_mut();
        let sum = running.sum.as_chunks_mut::<LANES>().0.iter_mut();
        let keep = running.keep.as_chunks_mut::<LANES>().0.iter_mut();
        for (group, ((max, sum), keep)) in max.zip(sum).zip(keep).enumerate() {
            let before = *max;
            let largest = largest(tile, group, groups, keys, before);
            let shift = largest.map(|m| if m == f32::NEG_INFINITY { 0.0 } else { m });
            let mut added = [0.0; LANES];
            for key in 0..keys {
                let s = &mut tile[key * groups + group];
                for i in 0..LANES {
                    s[i] = exp_or_zero(s[i] - shift[i]);
                }
                for i in 0..LANES {
                    added[i] += s[i];
                }
            }
            let mut inverse = [0.0; LANES];
            for i in 0..LANES {
                let old = sum[i] * exp_or_zero(before[i] - shift[i]);
                sum[i] = old + added[i];
                inverse[i] = if sum[i] == 0.0 { 0.0 } else { 1.0 / sum[i] };
                keep[i] = old * inverse[i];
            }
            *max = largest;
            for key in 0..keys {
                let s = &mut tile[key * groups + group];
                for i in 0..LANES {
                    s[i] *= inverse[i];
                }
            }
        }
    }
}

/// The largest score of each lane of a group; a NaN never counts as larger.
#[inline(always)]
fn largest(
    tile: &[[f32; LANES]],
    group: usize,
    groups: usize,
    keys: usize,
    mut max: [f32; LANES],
) -> [f32; LANES] {
    for key in 0..keys {
        let s = &tile[key * groups + group];
        for i in 0..LANES {
            max[i] = if s[i] > max[i] { s[i] } else { max[i] };
        }
    }
    max
}

/// What the backward pass knows of each query row, in whole groups of lanes.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) max: &'a [f32],
    /// `1/sum`
    pub(super) inverse: &'a [f32],
    /// `D = Σ dy·y`
    pub(super) dot: &'a [f32],
}

vectorized! {
    /// `scores` become `p·f`, and `dp` (`dy·vᵀ`) becomes `ds = p·(f·dp - D)`; without dropout
    /// `factors` is empty and `f` is 1.
    pub(super) fn differentiate(
        scores: &mut [f32],
        dp: &mut [f32],
        factors: &[f32],
        known: Known<'_>,
    ) {
        let groups = known.max.len() / LANES;
        let tile = scores.as_chunks_mut::<LANES>().0;
        let slopes = dp.as_chunks_mut::<LANES>().0;
        let factors = factors.as_chunks::<LANES>().0;
        let max = known.max.as_chunks::<LANES>().0.iter();
        let inverse = known.inverse.as_chunks::<LANES>().0.iter();
        let dot = known.dot.as_chunks::<LANES>().0.iter();
        for (group, ((max, inverse), dot)) in max.zip(inverse).zip(dot).enumerate() {
            for at in (group..tile.len()).step_by(groups) {
                let (mut p, mut ds) = (tile[at], slopes[at]);
                for i in 0..LANES {
                    p[i] = exp_or_zero(p[i] - max[i]) * inverse[i];
                }
                match factors.get(at) {
                    None => {
                        for i in 0..LANES {
                            ds[i] = p[i] * (ds[i] - dot[i]);
                        }
                    }
                    Some(f) => {
                        for i in 0..LANES {
                            ds[i] = p[i] * (ds[i] * f[i] - dot[i]);
                            p[i] *= f[i];
                        }
                    }
                }
                (tile[at], slopes[at]) = (p, ds);
            }
        }
    }
}

vectorized! {
    /// `s` becomes `cap·tanh(s/cap)`; `slopes`, unless empty, the derivative.
    pub(super) fn cap_scores(scores: &mut [f32], slopes: &mut [f32], cap: f32) {
        let inverse = 1.0 / cap;
        for (s, slope) in scores.iter().zip(slopes.iter_mut()) {
            let t = tanh(*s * inverse);
            *slope = 1.0 - t * t;
        }
        for s in scores.iter_mut() {
            *s = cap * tanh(*s * inverse);
        }
    }
}

vectorized! {
    /// `x *= y`
    pub(super) fn scale_by(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
    }
}

vectorized! {
    /// `x += y`
    pub(super) fn add(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

vectorized! {
    /// `x += factor·y`
    pub(super) fn add_scaled(x: &mut [f32], factor: f32, y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
    }
}

vectorized! {
    /// `Σ x·y`
    pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
        inner(x, y)
    }
}

vectorized! {
    /// [`dot`] of bf16.
    pub(super) fn dot_of_bf16(x: &[bf16], y: &[bf16]) -> f32 {
        let mut sums = [0.0; LANES];
        let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        let wide = |v: bf16| f32::from_bits(u32::from(v.to_bits()) << 16);
        for (x, y) in x.iter().zip(y) {
            for i in 0..LANES {
                sums[i] += wide(x[i]) * wide(y[i]);
            }
        }
        let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| wide(*x) * wide(*y)).sum();
        total(sums) + rest
    }
}

vectorized! {
    /// Multiplies each row of `dim` elements with its factor.
    pub(super) fn scale_rows(x: &mut [f32], dim: usize, factors: &[f32]) {
        for (x, factor) in x.chunks_exact_mut(dim).zip(factors) {
            x.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

vectorized! {
    /// The scores of one query row: one for each key.
    pub(super) fn row_scores(query: &[f32], keys: Rows<'_>, scale: f32, out: &mut [f32]) {
        for (key, out) in keys.data.chunks(keys.stride).zip(out) {
            *out = scale * inner(query, &key[..query.len()]);
        }
    }
}

vectorized! {
    /// Turns one row's scores into probabilities; returns their maximum and sum, of which the sum
    /// is 0 for a row that sees nothing.
    pub(super) fn row_softmax(scores: &mut [f32]) -> [f32; 2] {
        let mut max = [f32::NEG_INFINITY; LANES];
        for scores in scores.chunks(LANES) {
            for (m, &s) in max.iter_mut().zip(scores) {
                *m = if s > *m { s } else { *m };
            }
        }
        let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums = [0.0; LANES];
        for scores in scores.chunks_mut(LANES) {
            for (sum, s) in sums.iter_mut().zip(scores) {
                *s = exp_or_zero(*s - shift);
                *sum += *s;
            }
        }
        let sum = total(sums);
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        scores.iter_mut().for_each(|s| *s *= inverse);
        [max, sum]
    }
}

/// `Σ x·y` in sixteen partial sums.
#[inline(always)]
pub(super) fn inner(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    total(sums) + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// The sum of all lanes, halves on halves: one after another, each would wait for the one before.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_number_stays_without_and_an_empty_one_is_zero() {
        // Lane 0 sees nothing, lane 1 a NaN, lane 2 the largest numbers, the others one key each.
        let mut scores = [0.0; 2 * LANES];
        [scores[0], scores[16]] = [f32::NEG_INFINITY; 2];
        scores[17] = f32::NAN;
        [scores[2], scores[18]] = [f32::MAX, -f32::MAX];
        scores[19..].fill(f32::NEG_INFINITY);
        let (mut max, mut sum, mut keep) = ([f32::NEG_INFINITY; 16], [0.0; 16], [0.0; 16]);
        advance(&mut scores, Running { max: &mut max, sum: &mut sum, keep: &mut keep });
        assert_eq!([scores[0], scores[16], sum[0], keep[0]], [0.0; 4]);
        assert!(scores[1].is_nan() && scores[17].is_nan() && sum[1].is_nan());
        assert_eq!([scores[2], scores[18]], [1.0, 0.0]);
        assert_eq!([scores[3], scores[19], max[3], sum[3]], [1.0, 0.0, 0.0, 1.0]);
    }
}
