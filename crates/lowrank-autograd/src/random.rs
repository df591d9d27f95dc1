//! Counter-based randomness: every number is a function of where it is used, never of what was
//! drawn before, so that nothing has to be saved or restored.
//!
//! Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011);
//! checked against the known answers of its authors' Random123.

use std::sync::Arc;

use rayon::prelude::*;

use crate::{Error, Result};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32-10: 128 counter bits and 64 key bits in, 128 random bits out.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        let [a_high, a_low] = [(a >> 32) as u32, a as u32];
        let [b_high, b_low] = [(b >> 32) as u32, b as u32];
        counter = [b_high ^ counter[1] ^ key[0], b_low, a_high ^ counter[3] ^ key[1], a_low];
    }
    counter
}

/// A 64-bit hash of bytes (FNV-1a), for turning the name of a place into a number.
pub fn site(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// Seed and purpose of a stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// An independent stream for `purpose` (a step, a layer, a tensor) within this one.
    pub fn with(self, purpose: u64) -> Self {
        let halves = |v: u64| [v as u32, (v >> 32) as u32];
        let [lo, hi] = halves(purpose);
        let [a, b, ..] = philox([lo, hi, 0x6C6F_7772, 0x616E_6B00], halves(self.0));
        Self(u64::from(a) | u64::from(b) << 32)
    }

    /// An independent stream for a named place.
    pub fn at(self, name: &str) -> Self {
        self.with(site(name))
    }

    /// Four random words for a place in the stream.
    pub fn block(self, row: u64, column_block: u64) -> [u32; 4] {
        philox(
            [row as u32, (row >> 32) as u32, column_block as u32, (column_block >> 32) as u32],
            [self.0 as u32, (self.0 >> 32) as u32],
        )
    }

    /// A number in `[0, 1)` with 32 random bits.
    pub fn uniform(self, index: u64) -> f64 {
        let words = self.block(0, index / 4);
        f64::from(words[(index % 4) as usize]) / 4_294_967_296.0
    }

    /// `n` normal variates of mean 0 and deviation 1 (Box–Muller, on 32-bit uniforms).
    pub fn normals(self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(n + 4);
        let mut block = 0;
        while out.len() < n {
            let w = self.block(1, block);
            for pair in [[w[0], w[1]], [w[2], w[3]]] {
                // In (0, 1], so that the logarithm is finite.
                let u = (f64::from(pair[0]) + 1.0) / 4_294_967_296.0;
                let angle = f64::from(pair[1]) / 4_294_967_296.0 * std::f64::consts::TAU;
                let radius = (-2.0 * u.ln()).sqrt();
                out.push((radius * angle.cos()) as f32);
                out.push((radius * angle.sin()) as f32);
            }
            block += 1;
        }
        out.truncate(n);
        out
    }

    /// `n` variates uniform in `[-bound, bound)`.
    pub fn uniforms(self, n: usize, bound: f64) -> Vec<f32> {
        (0..n as u64).map(|i| ((self.uniform(i) * 2.0 - 1.0) * bound) as f32).collect()
    }
}

/// What makes each token row's randomness its own: a hash of (sample, position in the sample).
/// A sample's masks are then the same however samples are put into batches.
pub type RowKeys = Arc<[u64]>;

/// Dropout (arXiv:1207.0580) at one place of one step: elements are zeroed with probability `p`,
/// the others divided by `1 - p`. The mask is recomputed wherever it is needed, never stored.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability of a zero, in `[0, 1)`.
    pub p: f32,
    /// Stream of the step and the place.
    pub key: Key,
    /// One key for each row of the tensor.
    pub rows: RowKeys,
}

impl Dropout {
    /// An error unless it has a key for each of `rows` rows and a probability in `[0, 1)`.
    pub(crate) fn check(&self, op: &'static str, rows: usize) -> Result<()> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(Error::Probability { op, p: self.p });
        }
        if self.rows.len() < rows {
            let must_be = format!("at least {rows}, one for each row");
            let (what, found) = ("the number of row keys", vec![self.rows.len()]);
            return Err(Error::Shape { op, what, found, must_be });
        }
        Ok(())
    }

    /// `x` `[rows, columns]` with its mask applied, on all threads: a row's mask is its own.
    pub(crate) fn apply(&self, x: &[f32], columns: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let rows = out.par_chunks_exact_mut(columns.max(1)).zip(x.par_chunks_exact(columns.max(1)));
        rows.enumerate().for_each(|(row, (out, x))| {
            self.factors(row, 0, out);
            out.iter_mut().zip(x).for_each(|(o, x)| *o *= x);
        });
        out
    }

    /// The factors of columns `start..start + out.len()` of a row: 0 or `1 / (1 - p)`.
    pub fn factors(&self, row: usize, start: usize, out: &mut [f32]) {
        let threshold = (f64::from(self.p) * 4_294_967_296.0) as u64;
        let keep = 1.0 / (1.0 - self.p);
        let row = self.rows.get(row).copied().unwrap_or_default();
        let mut words = [0; 4];
        for (i, factor) in out.iter_mut().enumerate() {
            let column = start + i;
            if i == 0 || column.is_multiple_of(4) {
                words = self.key.block(row, (column / 4) as u64);
            }
            *factor = if u64::from(words[column % 4]) < threshold { 0.0 } else { keep };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // known answers from Random123's kat_vectors, "philox4x32 10"
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn normals_have_mean_zero_and_deviation_one() {
        let v = Key::new(7).at("w").normals(100_000);
        let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let variance = v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn dropout_keeps_its_share_and_does_not_depend_on_where_it_starts() {
        let rows: RowKeys = Arc::new([3, 9]);
        let d = Dropout { p: 0.3, key: Key::new(1), rows };
        let mut whole = vec![0.0; 10_001];
        d.factors(1, 0, &mut whole);
        let zeros = whole.iter().filter(|&&f| f == 0.0).count();
        assert!((2_800..3_200).contains(&zeros), "{zeros}");
        let mut part = vec![0.0; 77];
        d.factors(1, 13, &mut part);
        assert_eq!(part, whole[13..90]);
        let mut other = vec![0.0; 77];
        d.factors(0, 13, &mut other);
        assert_ne!(part, other);
    }
}
