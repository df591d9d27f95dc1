//! Which multiplying kernel this machine runs best, found out once.

use std::sync::OnceLock;

use super::super::simd::{Level, level};

/// A set of tile kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The `gemm` crate: NEON, and whatever else.
    Portable,
    /// AVX2 with FMA; bf16 is widened to f32 when it is packed.
    Avx2,
    /// AVX-512; bf16 is widened to f32 when it is packed.
    Avx512,
    /// AVX-512, with bf16 weights multiplied as pairs of bf16.
    Avx512Bf16,
}

impl Engine {
    /// The fastest on this machine.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Engine> = OnceLock::new();
        *BEST.get_or_init(|| match level() {
            Level::Portable => Self::Portable,
            Level::Avx2 => Self::Avx2,
            Level::Avx512 if has_bf16() && is_fast_at_bf16() => Self::Avx512Bf16,
            Level::Avx512 => Self::Avx512,
        })
    }

    /// All that run here, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        all.extend((level() >= Level::Avx2).then_some(Self::Avx2));
        all.extend((level() >= Level::Avx512).then_some(Self::Avx512));
        all.extend(has_bf16().then_some(Self::Avx512Bf16));
        all
    }

    /// Rows and columns of a tile of the result.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tile(self) -> (usize, usize) {
        match self {
            Self::Avx512 | Self::Avx512Bf16 => (14, 32),
            Self::Avx2 | Self::Portable => (6, 16),
        }
    }
}

/// Whether there is an instruction for pairs of bf16 at all.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn is_fast_at_bf16() -> bool {
    false
}

/// Times both kinds of multiplication in registers: not every machine that has the instruction is
/// fast at it. Machines run it at half the rate of f32 or at twice that, so that noise doesn't turn
/// the answer, and with it the bits of results.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "calls of functions compiled for another instruction set")]
fn is_fast_at_bf16() -> bool {
    const STEPS: u32 = 20_000;
    const TRIES: usize = 9;
    let fastest = |run: &dyn Fn()| {
        let time = || {
            let start = std::time::Instant::now();
            run();
            start.elapsed()
        };
        (0..TRIES).map(|_| time()).min().unwrap_or_default()
    };
    // SAFETY: `best` has asked `has_bf16`, which finds both instructions.
    let narrow = fastest(&|| unsafe { super::tile::spin_bf16(STEPS) });
    // SAFETY: as above.
    let wide = fastest(&|| unsafe { super::tile::spin_f32(STEPS) });
    // A bf16 step multiplies two pairs where an f32 step multiplies one.
    narrow.as_secs_f64() < 1.5 * wide.as_secs_f64()
}
