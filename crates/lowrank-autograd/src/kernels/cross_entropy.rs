//! The rows of softmax cross-entropy, whole or panel by panel: the softmax is kept relative to the
//! largest logit so far (online normalization, arXiv:1805.02867), the target's own share apart.
//!
//! With `s = Σ_{j≠t} exp(z_j - m)` and `e = exp(z_t - m)`: `L = m - z_t + log(s + e)` and
//! `p_t - 1 = -s/(s + e)`, which stays exact where the target's probability is all but 1.

use super::simd::{exp, tanh, vectorized};

/// What is known of a row's softmax once some of its logits were seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    max: f32,
    /// `Σ exp(z - max)` over the logits other than the target's.
    others: f64,
    target: f32,
    hit: bool,
}

impl Row {
    /// Before the first logit. The lowest finite number is below whatever comes, and infinities
    /// can be subtracted from it.
    pub(crate) fn new() -> Self {
        Self { max: f32::MIN, others: 0.0, target: f32::MIN, hit: false }
    }

    /// Takes in the logits `z`, those of classes `first..`, and leaves `exp(z - max)` in their
    /// place; 0 for `target`. Returns what earlier exponentials have to be multiplied by.
    pub(crate) fn absorb(&mut self, z: &mut [f32], first: usize, target: usize) -> f32 {
        let largest = maximum(z);
        let place = target.checked_sub(first).filter(|place| *place < z.len());
        if largest > self.max {
            // Among equals the first counts, as in PyTorch's `argmax`.
            self.hit = place.is_some() && z.iter().position(|v| *v == largest) == place;
        }
        if let Some(z) = place.and_then(|place| z.get_mut(place)) {
            self.target = std::mem::replace(z, f32::NEG_INFINITY);
        }
        let max = self.max.max(largest);
        let factor = (self.max - max).exp();
        self.max = max;
        self.others = self.others * f64::from(factor) + exponentials(z, max);
        factor
    }

    /// `s + e`, where all exponentials are relative to the largest logit.
    fn total(&self) -> f64 {
        self.others + (f64::from(self.target) - f64::from(self.max)).exp()
    }

    /// `-log p_t`. The logarithms of maximum and sum aren't added up before the target is
    /// subtracted: beside a large maximum the sum would be lost. Where the target has the largest
    /// logit, `e` is 1 and the loss may be far below what is left of 1 in a sum.
    pub(crate) fn loss(&self) -> f64 {
        match self.target == self.max {
            true => self.others.ln_1p(),
            false => f64::from(self.max) - f64::from(self.target) + self.total().ln(),
        }
    }

    /// Whether the target is the first of the largest logits.
    pub(crate) fn hit(&self) -> bool {
        self.hit
    }

    /// Makes probabilities of exponentials.
    pub(crate) fn factor(&self) -> f32 {
        (1.0 / self.total()) as f32
    }

    /// `p_t - 1`: the gradient of the target's logit. With a `softcap`, that of what was capped.
    pub(crate) fn target_gradient(&self, softcap: Option<f32>) -> f32 {
        let gradient = (-self.others / self.total()) as f32;
        softcap.map_or(gradient, |c| gradient * cap_slope(self.target / c))
    }
}

/// Elements that are handled side by side: several registers of every instruction set.
const LANES: usize = 32;

vectorized! {
    /// The largest number; `-inf` if there is none.
    fn maximum(z: &[f32]) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (blocks, rest) = z.as_chunks::<LANES>();
        for block in blocks {
            for (lane, v) in lanes.iter_mut().zip(block) {
                *lane = larger(*lane, *v);
            }
        }
        rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, v| larger(m, *v))
    }
}

vectorized! {
    /// `z = exp(z - max)`; returns the sum.
    fn exponentials(z: &mut [f32], max: f32) -> f64 {
        // Each lane adds up few numbers in f32 before they go on in f64.
        const RUN: usize = 32 * LANES;
        let mut sum = 0.0;
        for run in z.chunks_mut(RUN) {
            let mut lanes = [0.0f32; LANES];
            let (blocks, rest) = run.as_chunks_mut::<LANES>();
            for block in blocks {
                for (lane, v) in lanes.iter_mut().zip(block) {
                    *v = exp(*v - max);
                    *lane += *v;
                }
            }
            for v in rest {
                *v = exp(*v - max);
                sum += f64::from(*v);
            }
            sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        }
        sum
    }
}

/// Derivative of `c·tanh(z/c)` where its result is `c·share`.
#[inline(always)]
fn cap_slope(share: f32) -> f32 {
    1.0 - share * share
}

vectorized! {
    /// `z = c·tanh(z/c)`; `slopes` are its derivatives there.
    pub(crate) fn cap(z: &mut [f32], slopes: &mut [f32], c: f32) {
        for (z, slope) in z.iter_mut().zip(slopes) {
            let share = tanh(*z / c);
            *z = c * share;
            *slope = cap_slope(share);
        }
    }
}

vectorized! {
    /// `to *= by`, element by element.
    pub(crate) fn multiply(to: &mut [f32], by: &[f32]) {
        for (to, by) in to.iter_mut().zip(by) {
            *to *= by;
        }
    }
}

vectorized! {
    /// `to = factor·to + from`.
    pub(crate) fn scale_and_add(to: &mut [f32], factor: f32, from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = factor * *to + from;
        }
    }
}

vectorized! {
    /// `to *= factor`.
    pub(crate) fn scale(to: &mut [f32], factor: f32) {
        for to in to {
            *to *= factor;
        }
    }
}

vectorized! {
    /// `to += from`.
    pub(crate) fn add(to: &mut [f32], from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}
