//! Tiles of AMX: 32 × 32 of the result from pairs of bf16, sums in f32.
//!
//! The instructions are written as assembly, since the compiler's own are not stable yet.

#![expect(unsafe_code, reason = "tile instructions, which read panels through pointers")]

use std::{
    arch::{asm, x86_64::*},
    ptr::{null, null_mut},
    sync::OnceLock,
};

/// Rows (and columns) of the result that a kernel computes.
pub(crate) const ROWS: usize = 32;
/// Steps of one multiplication of tiles: panels hold whole ones, filled up with zeros.
pub(crate) const STEPS: usize = 16;

/// Numbers of bf16 whose sum is an f32.
pub(super) const PLANES: usize = 3;

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

/// The tile registers of this thread, from their configuration to their release.
pub(crate) struct Tiles(());

impl Tiles {
    /// Configures them for [`Plan::multiply`].
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

/// Tiles of a turn are loaded and multiplied: 32 × 32 × 32. The rows of a tile lie `{v}` bytes apart
/// in the left factor and 128 in the right panel; `{a}` and `{q}` are the first and the second 16 rows
/// of the left one, `{t}` bytes from turn to turn.
macro_rules! turn {
    () => {
        "tileloadd tmm4, [{a} + {v} * 1]
         tileloaddt1 tmm6, [{b} + {w} * 2]
         tileloaddt1 tmm7, [{b} + {w} * 2 + 64]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{q} + {v} * 1]
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         add {a}, {t}
         add {q}, {t}
         add {b}, 2048"
    };
}

/// The same of numbers that are sums of three bf16 ([`PLANES`]): their tiles follow each other, and
/// all products are made but those whose share is below the precision of f32.
macro_rules! split_turn {
    () => {
        "tileloadd tmm4, [{a} + {w} * 1]
         tileloadd tmm6, [{b} + {w} * 2]
         tileloadd tmm7, [{b} + {w} * 2 + 64]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{a} + {w} * 1 + 1024]
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm6, [{b} + {w} * 2 + 4096]
         tileloadd tmm7, [{b} + {w} * 2 + 4160]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm6, [{b} + {w} * 2 + 2048]
         tileloadd tmm7, [{b} + {w} * 2 + 2112]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm4, [{a} + {w} * 1 + 2048]
         tileloadd tmm5, [{a} + {w} * 1 + 3072]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm6, [{b} + {w} * 2]
         tileloadd tmm7, [{b} + {w} * 2 + 64]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         tileloadd tmm4, [{a} + {w} * 1 + 4096]
         tileloadd tmm5, [{a} + {w} * 1 + 5120]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         add {a}, 6144
         add {b}, 6144"
    };
}

/// The loop over turns, in which `$put` puts the rows of 32 sums in zmm0, zmm1 and zmm2, zmm3 at
/// `{p}`.
macro_rules! run {
    ($turn:ident, $plan:ident, $put:literal) => {
        asm!(
            "mov {s}, [{plan} + 16]",
            "test {s}, {s}",
            "jz 2f",
            "mov {r}, [{plan} + 24]",
            "mov {p}, {r}",
            "shl {p}, 4",
            "add {p}, {s}",
            "tileloadd tmm0, [{s} + {r} * 1]",
            "tileloadd tmm1, [{s} + {r} * 1 + 64]",
            "tileloadd tmm2, [{p} + {r} * 1]",
            "tileloadd tmm3, [{p} + {r} * 1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "mov {a}, [{plan}]",
            "mov {b}, [{plan} + 8]",
            "mov {n}, [{plan} + 48]",
            "mov {s}, [{plan} + 64]",
            "mov {p}, [{plan} + 72]",
            "mov {r}, [{plan} + 80]",
            "mov {v}, [{plan} + 96]",
            "mov {t}, [{plan} + 104]",
            "mov {q}, {v}",
            "shl {q}, 4",
            "add {q}, {a}",
            "mov {w}, 64",
            "test {n}, {n}",
            "jz 5f",
            "4:",
            $turn!(),
            "vmovups zmm0, [{s}]",
            "vmovups zmm1, [{s} + 64]",
            "vmovups zmm2, [{s} + 128]",
            "vmovups zmm3, [{s} + 192]",
            $put,
            "lea {p}, [{p} + {r} * 2]",
            "add {s}, 256",
            "dec {n}",
            "jnz 4b",
            "5:",
            "mov {n}, [{plan} + 56]",
            "test {n}, {n}",
            "jz 7f",
            "6:",
            $turn!(),
            "dec {n}",
            "jnz 6b",
            "7:",
            "mov {n}, [{plan} + 120]",
            "test {n}, {n}",
            "jz 9f",
            "mov {a}, [{plan} + 112]",
            "lea {q}, [{a} + 1024]",
            "mov {v}, 64",
            "mov {t}, 2048",
            "8:",
            $turn!(),
            "dec {n}",
            "jnz 8b",
            "9:",
            "mov {s}, [{plan} + 32]",
            "mov {r}, [{plan} + 40]",
            "mov {p}, {r}",
            "shl {p}, 4",
            "add {p}, {s}",
            "tilestored [{s} + {r} * 1], tmm0",
            "tilestored [{s} + {r} * 1 + 64], tmm1",
            "tilestored [{p} + {r} * 1], tmm2",
            "tilestored [{p} + {r} * 1 + 64], tmm3",
            plan = in(reg) $plan,
            a = out(reg) _, b = out(reg) _, n = out(reg) _, w = out(reg) _, s = out(reg) _,
            p = out(reg) _, r = out(reg) _, q = out(reg) _, v = out(reg) _, t = out(reg) _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Sums of a whole result.
#[repr(align(64))]
pub(super) struct Sums([f32; ROWS * ROWS]);

impl Sums {
    pub(super) fn new() -> Self {
        Self([0.0; ROWS * ROWS])
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr()
    }
}

/// Elements of a result in memory, of f32 or bf16, and bytes from one row to the next.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Place {
    pub(super) at: *mut u8,
    pub(super) row_bytes: usize,
    pub(super) narrow: bool,
}

impl Place {
    /// Puts the rows of a whole result from `first` on.
    ///
    /// # Safety
    /// 32 rows of 32 sums, and as many rows of 32 elements in memory.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn put(&self, sums: *const f32, first: usize) {
        for row in first..ROWS {
            // SAFETY: the caller's promise.
            unsafe {
                let from = sums.add(row * ROWS);
                let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
                let to = self.at.add(row * self.row_bytes);
                if self.narrow {
                    to.cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low));
                } else {
                    _mm512_storeu_ps(to.cast(), low);
                    _mm512_storeu_ps(to.cast::<f32>().add(16), high);
                }
            }
        }
    }

    /// Puts some rows and columns, on top of what stands at `begin`, rows so many bytes apart.
    ///
    /// # Safety
    /// So many rows and columns lie inside either memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_edge(
        &self,
        sums: *const f32,
        [rows, columns]: [usize; 2],
        begin: Option<(*const u8, usize)>,
    ) {
        let mask = u32::MAX >> (32 - columns as u32);
        for (row, half) in (0..rows).flat_map(|row| [(row, 0), (row, 16)]) {
            let mask = (mask >> half) as u16;
            // SAFETY: the caller's promise; the masks touch nothing beyond.
            unsafe {
                let mut sum = _mm512_loadu_ps(sums.add(row * ROWS + half));
                if let Some((at, row_bytes)) = begin {
                    let at = at.add(row * row_bytes).cast::<f32>().wrapping_add(half);
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, at));
                }
                let to = self.at.add(row * self.row_bytes);
                if self.narrow {
                    let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sum));
                    _mm256_mask_storeu_epi16(to.cast::<i16>().wrapping_add(half), mask, narrow);
                } else {
                    _mm512_mask_storeu_ps(to.cast::<f32>().wrapping_add(half), mask, sum);
                }
            }
        }
    }
}

/// What the loop multiplies, reads and writes. It wants more numbers than there are registers, and
/// so finds them in memory; there they stay from one result to the next.
#[repr(C)]
pub(super) struct Plan {
    /// 32 rows of the left factor, and a panel of the right one, which holds 32 lanes a step.
    pub(super) left: *const u32,
    pub(super) right: *const u32,
    /// 32 rows of 32 sums to begin with, so many bytes apart, or null.
    pub(super) start: *const u8,
    pub(super) start_row: usize,
    /// Where sums go, as many.
    pub(super) sums: *mut f32,
    pub(super) sums_row: usize,
    /// Turns beside which two rows of what waits are put, and the others.
    turns: [usize; 2],
    /// A whole result that waits to be put where it belongs, or null.
    pub(super) waiting: *const f32,
    /// Where it belongs. Not an argument: the loads of a copy are wider than the stores of its fields
    /// were, and so would wait until all sums before them have gone to the cache.
    pub(super) to: Place,
    /// Bytes from one row of the left factor to the next, and from one turn's to the next's; those of
    /// several planes are panels in any case.
    pub(super) left_row: usize,
    pub(super) left_turn: usize,
    /// The left panel of the steps that follow in the right one, and their turns.
    pub(super) beside: *const u32,
    beside_turns: usize,
}

impl Plan {
    /// Bytes from row to row, and from turn to turn, of a left panel: a tile of 16 steps by 32 rows
    /// after another, each row's steps side by side.
    pub(super) const PANEL: (usize, usize) =
        (STEPS * size_of::<u32>(), STEPS * ROWS * size_of::<u32>());

    /// For left panels.
    pub(super) fn new() -> Self {
        Self {
            left: null(),
            right: null(),
            start: null(),
            start_row: 0,
            sums: null_mut(),
            sums_row: 0,
            turns: [0; 2],
            waiting: null(),
            to: Place { at: null_mut(), row_bytes: 0, narrow: false },
            left_row: Self::PANEL.0,
            left_turn: Self::PANEL.1,
            beside: null(),
            beside_turns: 0,
        }
    }

    /// Multiplies so many steps (whole tiles) of the factors, and of what stands beside them, which
    /// hold 1 plane or [`PLANES`]; meanwhile what waits is put where it belongs, in f32 where there
    /// are several planes.
    ///
    /// # Safety
    /// The factors hold the steps, sums are readable and writable where they stand, and what waits
    /// is as [`Place::put`] wants it; [`Tiles`] are configured on this thread.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn multiply(&mut self, [steps, beside]: [usize; 2], planes: usize) {
        let turns = steps / STEPS;
        self.beside_turns = beside / STEPS;
        let busy = if self.waiting.is_null() { 0 } else { turns.min(ROWS / 2) };
        if !self.waiting.is_null() && 2 * busy < ROWS {
            // SAFETY: the caller's promise.
            unsafe { self.to.put(self.waiting, 2 * busy) };
        }
        self.turns = [busy, turns - busy];
        let plan = &raw const *self;
        // SAFETY: the caller's promise.
        unsafe {
            match (planes, self.to.narrow) {
                (1, true) => run!(
                    turn,
                    plan,
                    "vcvtne2ps2bf16 zmm0, zmm1, zmm0
                     vcvtne2ps2bf16 zmm2, zmm3, zmm2
                     vmovdqu64 [{p}], zmm0
                     vmovdqu64 [{p} + {r}], zmm2"
                ),
                (1, false) => run!(
                    turn,
                    plan,
                    "vmovups [{p}], zmm0
                     vmovups [{p} + 64], zmm1
                     vmovups [{p} + {r}], zmm2
                     vmovups [{p} + {r} + 64], zmm3"
                ),
                _ => run!(
                    split_turn,
                    plan,
                    "vmovups [{p}], zmm0
                     vmovups [{p} + 64], zmm1
                     vmovups [{p} + {r}], zmm2
                     vmovups [{p} + {r} + 64], zmm3"
                ),
            }
        }
    }
}

/// A small product of packed panels into rows of f32, `stride` elements apart.
///
/// # Safety
/// The panels hold the steps of `m` rows and `n` columns, and the target has room for them;
/// [`Tiles`] are configured on this thread.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn multiply_panels(
    to: *mut f32,
    stride: usize,
    keep: bool,
    [m, n, steps]: [usize; 3],
    [left, right]: [*const u32; 2],
) {
    let mut plan = Plan::new();
    let mut edge = Sums::new();
    let row_bytes = stride * size_of::<f32>();
    for column in (0..n).step_by(ROWS) {
        for row in (0..m).step_by(ROWS) {
            let at = to.wrapping_add(row * stride + column).cast::<u8>();
            let place = Place { at, row_bytes, narrow: false };
            let size = [ROWS.min(m - row), ROWS.min(n - column)];
            let whole = size == [ROWS; 2];
            plan.left = left.wrapping_add(row * steps);
            plan.right = right.wrapping_add(column * steps);
            plan.start = if keep && whole { at } else { null() };
            plan.start_row = row_bytes;
            plan.sums = if whole { at.cast() } else { edge.as_mut_ptr() };
            plan.sums_row = if whole { row_bytes } else { ROWS * size_of::<f32>() };
            // SAFETY: the caller's promise; a whole result has room, another has it at the edge.
            unsafe {
                plan.multiply([steps, 0], 1);
                if !whole {
                    place.put_edge(plan.sums, size, keep.then_some((at, row_bytes)));
                }
            }
        }
    }
}

/// Keeps the tile multipliers busy: as many products as `spin_f32` has with these steps.
///
/// # Safety
/// [`exists`] holds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn spin(steps: usize) {
    let panel = Sums::new();
    let mut sums = Sums::new();
    let lanes = panel.0.as_ptr().cast();
    // SAFETY: the caller's promise.
    let _tiles = unsafe { Tiles::configure() };
    // 24 vectors of 16 products a step there, 32³ a turn here.
    for _ in 0..steps * 24 / 2048 {
        // SAFETY: the panel holds two tiles of either side, the buffer a result.
        unsafe { multiply_panels(sums.as_mut_ptr(), ROWS, false, [ROWS, ROWS, STEPS], [lanes; 2]) };
    }
    std::hint::black_box(&sums.0);
}
