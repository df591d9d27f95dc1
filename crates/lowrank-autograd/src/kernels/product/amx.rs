//! Tiles of AMX: 32 × 32 of the result from pairs of bf16, sums in f32.
//!
//! The instructions are written as assembly, since the compiler's own are not stable yet.

#![expect(unsafe_code, reason = "tile instructions, which read panels through pointers")]

use std::{arch::asm, ptr::null_mut, sync::OnceLock};

use super::tile::{Place, Run, put_row};

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

/// The kernel for any number of rows up to 32, as the other engines have them, but without a tail
/// (which [`tiles`](super::tiles) make steps of their own of). `main.a` holds a tile of 16 steps by
/// 32 rows after another, each row's steps side by side; `main.steps` is a multiple of 16.
///
/// # Safety
/// As for the other kernels; [`Tiles`] are configured on this thread.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn amx(main: Run, _tail: Run, place: Place) {
    let whole = place.rows == ROWS && place.columns == ROWS;
    // SAFETY: the panels hold whole tiles, and the buffer a whole result; what is put lies inside
    // `place`, of which a whole one has 32 rows and columns.
    unsafe {
        if whole && place.bias.is_null() {
            let start = if place.add { place.to } else { null_mut() };
            return multiply(main, Block::new(start, place.row_stride), place.into(), None, Fetch::NONE);
        }
        let mut sums = Sums::new();
        multiply(main, Block::NONE, sums.block(), None, Fetch::NONE);
        for row in 0..place.rows {
            put_row(&place, row, sums.row(row));
        }
    }
}

/// Sums of a whole result.
#[repr(align(64))]
pub(super) struct Sums([f32; ROWS * ROWS]);

impl Sums {
    pub(super) fn new() -> Self {
        Self([0.0; ROWS * ROWS])
    }

    pub(super) fn block(&mut self) -> Block {
        Block::new(self.0.as_mut_ptr(), ROWS)
    }

    /// 32 of them.
    pub(super) fn row(&self, row: usize) -> *const f32 {
        self.0[row * ROWS..].as_ptr()
    }
}

/// 32 rows of 32 elements in memory, or none.
#[derive(Clone, Copy)]
#[expect(dead_code, reason = "the loop reads it")]
pub(super) struct Block {
    at: *mut f32,
    row_bytes: usize,
}

impl Block {
    pub(super) const NONE: Self = Self { at: null_mut(), row_bytes: 0 };

    /// `stride` elements from one row to the next.
    pub(super) fn new(at: *mut f32, stride: usize) -> Self {
        Self { at, row_bytes: stride * size_of::<f32>() }
    }
}

impl From<Place> for Block {
    fn from(place: Place) -> Self {
        Self::new(place.to, place.row_stride)
    }
}

/// A whole result that waits to be put where it belongs.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub(super) sums: *const f32,
    pub(super) to: *mut u8,
    pub(super) row_bytes: usize,
    /// Whether it is put as bf16.
    pub(super) narrow: bool,
}

impl Waiting {
    /// Puts the rows from `first` on.
    ///
    /// # Safety
    /// 32 rows of sums, and as many rows of 32 elements where they belong.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn put(&self, first: usize) {
        use std::arch::x86_64::*;
        for row in first..ROWS {
            // SAFETY: the caller's promise.
            unsafe {
                let from = self.sums.add(row * ROWS);
                let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
                let to = self.to.add(row * self.row_bytes);
                if self.narrow {
                    to.cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low));
                } else {
                    _mm512_storeu_ps(to.cast(), low);
                    _mm512_storeu_ps(to.cast::<f32>().add(16), high);
                }
            }
        }
    }
}

/// Puts some rows and columns of a result on top of what stands at `begin`, rows so many elements
/// apart.
///
/// # Safety
/// So many rows and columns lie inside both.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn put_edge(
    what: &Waiting,
    [rows, columns]: [usize; 2],
    begin: Option<(*mut f32, usize)>,
) {
    use std::arch::x86_64::*;
    let mask = u32::MAX >> (32 - columns as u32);
    for (row, half) in (0..rows).flat_map(|row| [(row, 0), (row, 16)]) {
        let mask = (mask >> half) as u16;
        // SAFETY: the caller's promise; the masks touch nothing beyond.
        unsafe {
            let mut sum = _mm512_loadu_ps(what.sums.add(row * ROWS + half));
            if let Some((at, stride)) = begin {
                let at = at.wrapping_add(row * stride + half);
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, at));
            }
            let to = what.to.add(row * what.row_bytes);
            if what.narrow {
                let pairs = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sum));
                _mm256_mask_storeu_epi16(to.cast::<i16>().wrapping_add(half), mask, pairs);
            } else {
                _mm512_mask_storeu_ps(to.cast::<f32>().wrapping_add(half), mask, sum);
            }
        }
    }
}

/// Memory that will be wanted soon: two places a step, each so many bytes from the last one's.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    pub(super) at: [*const u8; 2],
    pub(super) step: usize,
}

impl Fetch {
    pub(super) const NONE: Self = Self { at: [std::ptr::null(); 2], step: 0 };
}

/// What the loop reads from memory, since it wants more numbers than there are registers.
#[repr(C)]
struct Plan {
    of: [*const u32; 2],
    start: Block,
    sums: Block,
    /// Steps beside which two rows of what waits are put, and the others.
    steps: [usize; 2],
    waiting: *const f32,
    to: *mut u8,
    to_row: usize,
    fetch: [*const u8; 2],
    fetch_step: usize,
}

/// Tiles of a step are loaded and multiplied: 32 × 32 × 32. The rows of a tile of either factor lie
/// 64 bytes apart in the left panel and 128 in the right one.
macro_rules! step {
    () => {
        "tileloadd tmm4, [{a} + {w} * 1]
         tileloadd tmm6, [{b} + {w} * 2]
         tileloadd tmm7, [{b} + {w} * 2 + 64]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{a} + {w} * 1 + 1024]
         tdpbf16ps tmm1, tmm4, tmm7
         prefetcht1 [{f}]
         prefetcht1 [{g}]
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7
         add {a}, 2048
         add {b}, 2048
         add {f}, {h}
         add {g}, {h}"
    };
}

/// The loop, in which `$put` puts the rows of 32 sums in zmm0, zmm1 and zmm2, zmm3 at `{p}`.
macro_rules! run {
    ($plan:ident, $put:literal) => {
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
            "mov {f}, [{plan} + 88]",
            "mov {g}, [{plan} + 96]",
            "mov {h}, [{plan} + 104]",
            "mov {w}, 64",
            "test {n}, {n}",
            "jz 5f",
            "4:",
            step!(),
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
            step!(),
            "dec {n}",
            "jnz 6b",
            "7:",
            "mov {s}, [{plan} + 32]",
            "mov {r}, [{plan} + 40]",
            "mov {p}, {r}",
            "shl {p}, 4",
            "add {p}, {s}",
            "tilestored [{s} + {r} * 1], tmm0",
            "tilestored [{s} + {r} * 1 + 64], tmm1",
            "tilestored [{p} + {r} * 1], tmm2",
            "tilestored [{p} + {r} * 1 + 64], tmm3",
            plan = in(reg) &raw const $plan,
            a = out(reg) _, b = out(reg) _, n = out(reg) _, w = out(reg) _, s = out(reg) _,
            p = out(reg) _, r = out(reg) _, f = out(reg) _, g = out(reg) _, h = out(reg) _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Multiplies two panels into `to`, on top of what stands at `start`; meanwhile puts what waits,
/// and asks for memory.
///
/// # Safety
/// The panels hold whole tiles of `of.steps`, blocks are readable and writable, and what waits is
/// as [`Waiting::put`] wants it; [`Tiles`] are configured on this thread.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(
    of: Run,
    start: Block,
    to: Block,
    waiting: Option<Waiting>,
    fetch: Fetch,
) {
    let turns = of.steps / STEPS;
    let busy = if waiting.is_some() { turns.min(ROWS / 2) } else { 0 };
    if let Some(waiting) = waiting.filter(|_| 2 * busy < ROWS) {
        // SAFETY: the caller's promise.
        unsafe { waiting.put(2 * busy) };
    }
    let plan = Plan {
        of: [of.a, of.b],
        start,
        sums: to,
        steps: [busy, turns - busy],
        waiting: waiting.map_or(std::ptr::null(), |w| w.sums),
        to: waiting.map_or(null_mut(), |w| w.to),
        to_row: waiting.map_or(0, |w| w.row_bytes),
        fetch: fetch.at.map(|at| if at.is_null() { of.a.cast() } else { at }),
        fetch_step: fetch.step,
    };
    // SAFETY: the caller's promise; a prefetch of any address is allowed.
    unsafe {
        if waiting.is_some_and(|w| w.narrow) {
            run!(
                plan,
                "vcvtne2ps2bf16 zmm0, zmm1, zmm0
                 vcvtne2ps2bf16 zmm2, zmm3, zmm2
                 vmovdqu64 [{p}], zmm0
                 vmovdqu64 [{p} + {r}], zmm2"
            );
        } else {
            run!(
                plan,
                "vmovups [{p}], zmm0
                 vmovups [{p} + 64], zmm1
                 vmovups [{p} + {r}], zmm2
                 vmovups [{p} + {r} + 64], zmm3"
            );
        }
    }
}

/// Keeps the tile multipliers busy: as many products as `spin_f32` has with these steps.
///
/// # Safety
/// [`exists`] holds.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn spin(steps: usize) {
    let panel = Sums::new();
    let mut sums = Sums::new();
    let lanes = panel.0.as_ptr().cast();
    let run = Run { steps: STEPS, a: lanes, b: lanes };
    // SAFETY: the caller's promise.
    let _tiles = unsafe { Tiles::configure() };
    // 24 vectors of 16 products a step there, 32³ a turn here.
    for _ in 0..steps * 24 / 2048 {
        // SAFETY: the panel holds two tiles of either side, the buffer a result.
        unsafe { multiply(run, Block::NONE, sums.block(), None, Fetch::NONE) };
    }
    std::hint::black_box(&sums.0);
}
