//! Which multiplying kernel this machine runs best, found out once.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::super::simd::has_bf16;
use super::super::simd::{Level, level};
#[cfg(target_arch = "x86_64")]
use super::amx;

/// A set of tile kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "engines of x86-64"))]
pub(crate) enum Engine {
    /// The `gemm` crate: NEON, and whatever else.
    Portable,
    /// AVX2 with FMA; bf16 is widened to f32 when it is packed.
    Avx2,
    /// AVX-512; bf16 is widened to f32 when it is packed.
    Avx512,
    /// AVX-512, with bf16 weights multiplied as pairs of bf16.
    Avx512Bf16,
    /// AVX-512, with bf16 weights multiplied in tiles of AMX.
    Amx,
}

impl Engine {
    /// The fastest on this machine.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Engine> = OnceLock::new();
        *BEST.get_or_init(|| match level() {
            Level::Portable => Self::Portable,
            Level::Avx2 => Self::Avx2,
            Level::Avx512 => fastest_avx512(),
        })
    }

    /// All that run here, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        all.extend((level() >= Level::Avx2).then_some(Self::Avx2));
        all.extend((level() >= Level::Avx512).then_some(Self::Avx512));
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(has_bf16().then_some(Self::Avx512Bf16));
            all.extend((level() == Level::Avx512 && amx::exists()).then_some(Self::Amx));
        }
        all
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fastest_avx512() -> Engine {
    Engine::Avx512
}

/// Times the kinds of multiplication in registers: not every machine that has an instruction is
/// fast at it. Machines run pairs of bf16 at half the rate of f32 or at twice that, and tiles at
/// several times it, so that noise doesn't turn the answer, and with it the bits of results.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "calls of functions compiled for another instruction set")]
fn fastest_avx512() -> Engine {
    const STEPS: u32 = 20_000;
    const TRIES: usize = 9;
    let fastest = |run: &dyn Fn()| {
        let time = || {
            let start = std::time::Instant::now();
            run();
            start.elapsed()
        };
        (0..TRIES).map(|_| time()).min().unwrap_or_default().as_secs_f64()
    };
    // SAFETY: the level is AVX-512.
    let wide = fastest(&|| unsafe { super::tile::spin_f32(STEPS) });
    // SAFETY: the instructions have been found.
    let tiles = amx::exists().then(|| fastest(&|| unsafe { amx::spin(STEPS as usize) }));
    if tiles.is_some_and(|tiles| 1.5 * tiles < wide) {
        return Engine::Amx;
    }
    // SAFETY: as above.
    let pairs = has_bf16().then(|| fastest(&|| unsafe { super::tile::spin_bf16(STEPS) }));
    // A step of pairs multiplies two where an f32 step multiplies one.
    match pairs.is_some_and(|pairs| pairs < 1.5 * wide) {
        true => Engine::Avx512Bf16,
        false => Engine::Avx512,
    }
}
