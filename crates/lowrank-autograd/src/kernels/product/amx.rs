//! Tiles of AMX: 32 × 32 of the result from pairs of bf16, sums in f32.
//!
//! The instructions are written as assembly, since the compiler's own are not stable yet. A kernel
//! configures the tile registers and releases them again, so that no state outlives it.

#![expect(unsafe_code, reason = "tile instructions, which read panels through pointers")]

use std::{arch::asm, sync::OnceLock};

use super::{
    element::{Element, Lines},
    pack::{self, BLOCK, Strip},
    tile::{Place, Run, put_row},
};
use crate::kernels::simd::vectorized;

/// Rows (and columns) of the result that a kernel computes.
pub(crate) const ROWS: usize = 32;
/// Steps of one multiplication of tiles: panels hold whole ones, filled up with zeros.
pub(crate) const STEPS: usize = 16;

/// What `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether the machine has the instructions and the system lets this process use them.
pub(crate) fn exists() -> bool {
    static EXISTS: OnceLock<bool> = OnceLock::new();
    *EXISTS.get_or_init(|| has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    is_x86_feature_detected!("avx512f") && features & (BF16 | TILE) == BF16 | TILE
}

/// Asks Linux for the tile registers, which it saves only for processes that did
/// (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes a number and touches no memory of ours.
    let result =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

vectorized! {
    /// Packs a strip of the left factor as [`amx`] reads it: tile after tile of 16 steps, each with
    /// 32 lines of them. Lines that don't exist are left as they are, since nothing reads their
    /// results.
    pub(crate) fn pack_left[T: Element](from: Lines<'_, T>, strip: Strip, out: &mut [u32]) {
        let per_tile = STEPS * strip.lanes.per_step();
        for (tile, out) in out.as_chunks_mut::<BLOCK>().0.chunks_exact_mut(ROWS).enumerate() {
            let start = tile * per_tile;
            let len = per_tile.min(strip.len.saturating_sub(start));
            for (line, to) in out.iter_mut().enumerate().take(strip.lines) {
                if from.step_stride == 1 {
                    let at = (strip.first_line + line) * from.line_stride + strip.first + start;
                    let source = from.data.get(at..at + len).unwrap_or_default();
                    pack::fill(source, strip.lanes, strip.scale, to);
                } else {
                    let lane = |i| pack::lane(from, strip, line, tile * STEPS + i);
                    to.iter_mut().enumerate().for_each(|(i, to)| *to = lane(i));
                }
            }
        }
    }
}

/// The kernel for any number of rows up to 32. `main.a` holds a tile of 16 steps by 32 rows after
/// another, each row's steps side by side; `main.steps` is a multiple of 16.
///
/// # Safety
/// As for the other kernels; [`exists`] holds.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn amx(main: Run, tail: Run, place: Place) {
    // SAFETY: the panels hold whole tiles, and the buffer a whole result; what is put lies inside
    // `place`, of which a whole one has 32 rows and columns.
    unsafe {
        let whole = place.rows == ROWS && place.columns == ROWS;
        if whole && tail.steps == 0 && !place.add && place.bias.is_null() {
            return multiply(main, place.to, place.row_stride);
        }
        let mut sums = Sums([0.0; ROWS * ROWS]);
        multiply(main, sums.0.as_mut_ptr(), ROWS);
        for row in 0..place.rows {
            put_row(&place, row, sums.0.as_ptr().add(row * ROWS), tail);
        }
    }
}

#[repr(align(64))]
struct Sums([f32; ROWS * ROWS]);

/// Multiplies two panels into 32 rows of 32 elements, `stride` apart.
unsafe fn multiply(of: Run, to: *mut f32, stride: usize) {
    // SAFETY: the panels hold `steps / 16` tiles of 2048 bytes; four tiles are stored where the
    // caller has room. Tile registers are configured here and released.
    unsafe {
        asm!(
            "ldtilecfg [{tiles}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {n}, {n}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{a} + {a_row} * 1]",
            "tileloadd tmm6, [{b} + {b_row} * 1]",
            "tileloadd tmm7, [{b} + {b_row} * 1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {a_row} * 1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "3:",
            "tilestored [{to} + {to_row} * 1], tmm0",
            "tilestored [{to} + {to_row} * 1 + 64], tmm1",
            "tilestored [{below} + {to_row} * 1], tmm2",
            "tilestored [{below} + {to_row} * 1 + 64], tmm3",
            "tilerelease",
            tiles = in(reg) &raw const TILES,
            a = inout(reg) of.a => _,
            b = inout(reg) of.b => _,
            n = inout(reg) of.steps / STEPS => _,
            a_row = in(reg) 64_usize,
            b_row = in(reg) 128_usize,
            to = in(reg) to,
            below = in(reg) to.wrapping_add(16 * stride),
            to_row = in(reg) 4 * stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Keeps the tile multipliers busy: as many products as `spin_f32` has with these steps.
///
/// # Safety
/// [`exists`] holds.
pub(crate) unsafe fn spin(steps: usize) {
    let panel = Sums([0.0; ROWS * ROWS]);
    let mut sums = Sums([0.0; ROWS * ROWS]);
    // 24 vectors of 16 products a step there, 4 · 16³ · 2 a turn here.
    for _ in 0..steps * 24 / 2048 {
        let lanes = panel.0.as_ptr().cast();
        // SAFETY: the panel holds two tiles of either side, the buffer a result.
        unsafe { multiply(Run { steps: STEPS, a: lanes, b: lanes }, sums.0.as_mut_ptr(), ROWS) };
    }
    std::hint::black_box(&sums.0);
}
