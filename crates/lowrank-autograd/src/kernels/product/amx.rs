//! Tiles of AMX: 32 × 32 of the result from pairs of bf16, sums in f32.
//!
//! The instructions are written as assembly, since the compiler's own are not stable yet.

#![expect(unsafe_code, reason = "tile instructions, which read panels through pointers")]

use std::{
    arch::{asm, x86_64::*},
    mem::MaybeUninit,
    sync::OnceLock,
};

use super::{
    element::Lines,
    engine::Engine,
    narrow,
    pack::{self, Strip},
    scratch::Scratch,
    tile::{Place, Run, put_row, transpose_avx512},
};

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
    is_x86_feature_detected!("avx512bf16") && features & (BF16 | TILE) == BF16 | TILE
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

/// Packs a strip of the left factor as [`amx`] reads it: tile after tile of 16 steps, each with 32
/// lines of them. Lines that don't exist may be left as they are, since nothing reads their results.
pub(crate) fn pack_left(engine: Engine, from: Lines<'_, f32>, strip: Strip, out: &mut [u32]) {
    if from.step_stride != 1 {
        return pack_across(engine, from, strip, out);
    }
    let first = strip.first_line * from.line_stride + strip.first;
    let stride = from.line_stride.max(strip.len).max(1); // an empty inner dimension has none
    let lines = from.data.get(first..).unwrap_or_default().chunks(stride);
    // SAFETY: a machine with tiles of bf16 converts to bf16.
    unsafe { narrow::lines::<ROWS>(lines.take(strip.lines), strip.len, strip.scale, out) };
}

/// The same where steps, or neither, lie contiguous: packs as for the right factor, and transposes.
fn pack_across(engine: Engine, from: Lines<'_, f32>, strip: Strip, out: &mut [u32]) {
    let steps = strip.steps();
    let mut lanes = Scratch::take(steps.next_multiple_of(STEPS) * ROWS);
    pack::pack(engine, from, Strip { width: ROWS, ..strip }, &mut lanes);
    lanes[steps * ROWS..].fill(0);
    let tiles = lanes.chunks_exact(STEPS * ROWS).zip(out.chunks_exact_mut(STEPS * ROWS));
    for (from, to) in tiles {
        for half in [0, 16] {
            let mut block = [[0; 16]; STEPS];
            for (to, from) in block.iter_mut().zip(from.chunks_exact(ROWS)) {
                to.copy_from_slice(&from[half..half + 16]);
            }
            // SAFETY: the target has 16 lines of 16 steps from this half on, and the machine AVX-512.
            unsafe { transpose_avx512(&block, to[half * STEPS..].as_mut_ptr(), STEPS, STEPS) };
        }
    }
}

/// The tile registers of this thread, from their configuration to their release.
pub(crate) struct Tiles(());

impl Tiles {
    /// Configures them for [`amx`].
    ///
    /// # Safety
    /// [`exists`] holds.
    pub(crate) unsafe fn configure() -> Self {
        // SAFETY: the caller's promise; `TILES` is what the instruction reads.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only a machine that has the instructions configures.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The kernel for any number of rows up to 32. `main.a` holds a tile of 16 steps by 32 rows after
/// another, each row's steps side by side; `main.steps` is a multiple of 16.
///
/// # Safety
/// As for the other kernels; [`Tiles`] are configured on this thread.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn amx(main: Run, tail: Run, place: Place) {
    // SAFETY: the panels hold whole tiles, and the buffer a whole result; what is put lies inside
    // `place`, of which a whole one has 32 rows and columns.
    unsafe {
        let whole = place.rows == ROWS && place.columns == ROWS;
        let alone = tail.steps == 0 && (place.bias.is_null() || !place.add);
        if whole && alone {
            let begin = match (place.add, place.bias.is_null()) {
                (true, _) => Start::At(place.to, place.row_stride),
                (_, false) => Start::At(place.bias, 0),
                _ => Start::Zero,
            };
            for row in 0..ROWS {
                let to = place.to.wrapping_add(row * place.row_stride);
                _mm_prefetch::<_MM_HINT_ET0>(to.cast());
                _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add(16).cast());
            }
            return multiply(main, begin, place.to, place.row_stride);
        }
        let mut sums = MaybeUninit::<Sums>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        multiply(main, Start::Zero, sums, ROWS);
        for row in 0..place.rows {
            put_row(&place, row, sums.add(row * ROWS), tail);
        }
    }
}

#[repr(align(64))]
struct Sums([f32; ROWS * ROWS]);

/// What sums begin with.
#[derive(Clone, Copy)]
enum Start {
    Zero,
    /// 32 rows of 32 elements, so many from one to the next.
    At(*const f32, usize),
}

/// Multiplies two panels into 32 rows of 32 elements, `stride` apart.
unsafe fn multiply(of: Run, start: Start, to: *mut f32, stride: usize) {
    let (start, start_stride) = match start {
        Start::Zero => (std::ptr::null(), 0),
        Start::At(at, stride) => (at, stride),
    };
    // SAFETY: the panels hold `steps / 16` tiles of 2048 bytes; four tiles are read where the
    // caller has a start, and stored where it has room.
    unsafe {
        asm!(
            "test {start}, {start}",
            "jz 4f",
            "tileloadd tmm0, [{start} + {start_row} * 1]",
            "tileloadd tmm1, [{start} + {start_row} * 1 + 64]",
            "tileloadd tmm2, [{start_below} + {start_row} * 1]",
            "tileloadd tmm3, [{start_below} + {start_row} * 1 + 64]",
            "jmp 5f",
            "4:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "5:",
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
            start = in(reg) start,
            start_below = in(reg) start.wrapping_add(16 * start_stride),
            start_row = in(reg) 4 * start_stride,
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
    let lanes = panel.0.as_ptr().cast();
    let run = Run { steps: STEPS, a: lanes, b: lanes };
    // SAFETY: the caller's promise.
    let _tiles = unsafe { Tiles::configure() };
    // 24 vectors of 16 products a step there, 32³ a turn here.
    for _ in 0..steps * 24 / 2048 {
        // SAFETY: the panel holds two tiles of either side, the buffer a result.
        unsafe { multiply(run, Start::Zero, sums.0.as_mut_ptr(), ROWS) };
    }
    std::hint::black_box(&sums.0);
}
