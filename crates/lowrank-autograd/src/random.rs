//! Counter-based randomness: every number is a function of where it is used, never of what was
//! drawn before, so that nothing has to be saved or restored.
//!
//! Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011);
//! checked against the known answers of its authors' Random123.

use std::sync::Arc;

use crate::{
    Error, Result,
    kernels::{
        buffer::{filled, piece_rows},
        simd::vectorized,
    },
};

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
        check_rows(op, &self.rows, rows)
    }

    /// `x` `[rows, columns]` with its mask applied, on all threads: a row's mask is its own.
    pub(crate) fn apply(&self, x: &[f32], columns: usize) -> Vec<f32> {
        filled(x.len(), piece_rows(columns) * columns, |start, out| {
            let rows = out.chunks_exact_mut(columns).zip(x[start..].chunks_exact(columns));
            for (i, (out, x)) in rows.enumerate() {
                multiply(out, x, &self.row(start / columns + i));
            }
        })
    }

    /// The factors of columns `start..start + out.len()` of a row: 0 or `1 / (1 - p)`.
    pub fn factors(&self, row: usize, start: usize, out: &mut [f32]) {
        factors(out, start, &self.row(row));
    }

    fn row(&self, row: usize) -> MaskRow {
        let (_, threshold, keep) = self.numbers();
        let row = self.rows.get(row).copied().unwrap_or_default();
        MaskRow { key: self.key, row, threshold, keep }
    }

    /// The key, the least random word that keeps its element, and the factor of what is kept.
    pub(crate) fn numbers(&self) -> (u64, u32, f32) {
        let threshold = (f64::from(self.p) * 4_294_967_296.0) as u32;
        (self.key.0, threshold, 1.0 / (1.0 - self.p))
    }
}

/// An error unless there is a key for each of `rows` rows.
fn check_rows(op: &'static str, keys: &RowKeys, rows: usize) -> Result<()> {
    if keys.len() >= rows {
        return Ok(());
    }
    let must_be = format!("at least {rows}, one for each row");
    Err(Error::Shape { op, what: "the number of row keys", found: vec![keys.len()], must_be })
}

/// Noise at one place of one step: elements are multiplied by numbers uniform in
/// `[1 - amount, 1 + amount)`, which like masks are computed wherever they are needed.
#[derive(Clone, Debug)]
pub struct Jitter {
    /// How far from 1 a factor may be.
    pub amount: f32,
    /// Stream of the step and the place.
    pub key: Key,
    /// One key for each row of the tensor.
    pub rows: RowKeys,
}

impl Jitter {
    /// An error unless it has a key for each of `rows` rows.
    pub(crate) fn check(&self, op: &'static str, rows: usize) -> Result<()> {
        check_rows(op, &self.rows, rows)
    }

    /// The factors of a row.
    pub fn factors(&self, row: usize, out: &mut [f32]) {
        let row = self.rows.get(row).copied().unwrap_or_default();
        for (block, out) in (0..).zip(out.chunks_mut(4)) {
            for (factor, word) in out.iter_mut().zip(self.key.block(row, block)) {
                let within = 2.0 * f64::from(word) / 4_294_967_296.0 - 1.0;
                *factor = (1.0 + f64::from(self.amount) * within) as f32;
            }
        }
    }
}

/// Blocks of random words that are computed side by side.
const BLOCKS: usize = 16;

/// One row of a mask: its factors are 0 where the random word is below the threshold.
struct MaskRow {
    key: Key,
    row: u64,
    threshold: u32,
    keep: f32,
}

impl MaskRow {
    /// The factors of `4·BLOCKS` columns, from column `4·first` on.
    #[inline(always)]
    fn factors(&self, first: u64) -> [f32; 4 * BLOCKS] {
        let words = self.words(first);
        let mut factors = [0.0; 4 * BLOCKS];
        for (block, factors) in factors.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (factor, words) in factors.iter_mut().zip(&words) {
                *factor = if words[block] < u64::from(self.threshold) { 0.0 } else { self.keep };
            }
        }
        factors
    }

    /// [`Key::block`] of `BLOCKS` blocks, the first words of all before the second ones. Words lie
    /// in the lower halves of 64-bit lanes, where vectors multiply without moving them about.
    #[inline(always)]
    fn words(&self, first: u64) -> [[u64; BLOCKS]; 4] {
        const LOW: u64 = 0xFFFF_FFFF;
        let mut words =
            [[self.row & LOW; BLOCKS], [self.row >> 32; BLOCKS], [0; BLOCKS], [0; BLOCKS]];
        let [w0, w1, w2, w3] = &mut words;
        for (i, (low, high)) in w2.iter_mut().zip(&mut *w3).enumerate() {
            let block = first.wrapping_add(i as u64);
            (*low, *high) = (block & LOW, block >> 32);
        }
        let mut key = [self.key.0 as u32, (self.key.0 >> 32) as u32];
        for _ in 0..10 {
            let rows = w0.iter_mut().zip(&mut *w1).zip(&mut *w2).zip(&mut *w3);
            for (((w0, w1), w2), w3) in rows {
                // One round of [`philox`].
                let a = u64::from(MULTIPLIERS[0]) * (*w0 & LOW);
                let b = u64::from(MULTIPLIERS[1]) * (*w2 & LOW);
                (*w0, *w1) = ((b >> 32) ^ *w1 ^ u64::from(key[0]), b & LOW);
                (*w2, *w3) = ((a >> 32) ^ *w3 ^ u64::from(key[1]), a & LOW);
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        words
    }
}

vectorized! {
    /// `out = x·factors`.
    fn multiply(out: &mut [f32], x: &[f32], mask: &MaskRow) {
        let pieces = out.chunks_mut(4 * BLOCKS).zip(x.chunks(4 * BLOCKS));
        for (i, (out, x)) in pieces.enumerate() {
            let factors = mask.factors((i * BLOCKS) as u64);
            for ((out, x), factor) in out.iter_mut().zip(x).zip(&factors) {
                *out = factor * x;
            }
        }
    }
}

vectorized! {
    /// The factors of the columns from `start` on.
    fn factors(out: &mut [f32], start: usize, mask: &MaskRow) {
        let (mut out, mut skip, mut block) = (out, start % 4, (start / 4) as u64);
        while !out.is_empty() {
            let found = mask.factors(block);
            let found = &found[skip..];
            let (now, later) = out.split_at_mut(found.len().min(out.len()));
            now.copy_from_slice(&found[..now.len()]);
            (out, skip, block) = (later, 0, block.wrapping_add(BLOCKS as u64));
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

    #[test]
    fn noise_is_uniform_about_one() {
        let noise = Jitter { amount: 0.2, key: Key::new(3), rows: Arc::new([5, 6]) };
        let mut factors = vec![0.0; 20_001];
        noise.factors(1, &mut factors);
        assert!(factors.iter().all(|f| (0.8..=1.2).contains(f)));
        let n = factors.len() as f64;
        let mean = factors.iter().map(|f| f64::from(*f)).sum::<f64>() / n;
        let variance = factors.iter().map(|f| (f64::from(*f) - mean).powi(2)).sum::<f64>() / n;
        assert!((mean - 1.0).abs() < 2e-3 && (variance - 0.04 / 3.0).abs() < 5e-4, "{variance}");
        let mut other = vec![0.0; 20_001];
        noise.factors(0, &mut other);
        assert_ne!(factors, other);
    }

    #[test] // one word at a time, as the mask is defined
    fn dropout_takes_the_words_of_its_blocks() {
        let d = Dropout { p: 0.3, key: Key::new(5), rows: Arc::new([1 << 40, u64::MAX - 1]) };
        let threshold = (f64::from(d.p) * 4_294_967_296.0) as u64;
        for (row, key) in d.rows.iter().enumerate() {
            for (start, n) in [(0, 1), (0, 64), (3, 65), (61, 7), (130, 257), (17_179_869_180, 9)] {
                let expected: Vec<f32> = (start..start + n)
                    .map(|column| {
                        let word = d.key.block(*key, column as u64 / 4)[column % 4];
                        if u64::from(word) < threshold { 0.0 } else { 1.0 / (1.0 - d.p) }
                    })
                    .collect();
                let mut found = vec![f32::NAN; n];
                d.factors(row, start, &mut found);
                assert_eq!(found, expected, "row {row}, {n} columns from {start}");
            }
        }
    }

    #[test]
    fn a_mask_multiplies_rows_by_its_factors() {
        for columns in [1, 3, 64, 577, 5_000] {
            let d = Dropout { p: 0.5, key: Key::new(6), rows: (7..16).collect() };
            let x = Key::new(8).normals(9 * columns);
            let mut expected = vec![0.0; x.len()];
            for (row, out) in expected.chunks_exact_mut(columns).enumerate() {
                d.factors(row, 0, out);
            }
            expected.iter_mut().zip(&x).for_each(|(e, x)| *e *= x);
            assert_eq!(d.apply(&x, columns), expected);
        }
    }
}
