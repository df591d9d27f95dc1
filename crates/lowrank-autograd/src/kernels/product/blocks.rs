//! Results of 32 × 32 in tiles of AMX, for who lays out both factors as the tiles read them.

#![expect(unsafe_code, reason = "functions compiled for another instruction set, and pointers")]

use std::{arch::x86_64::*, ptr::null};

use half::bf16;

use super::{
    amx::{self, Plan, ROWS, STEPS, Tiles},
    narrow,
    pairs::Pairs,
    scratch::Scratch,
    tile::transpose_rows,
};

/// Rows and columns of a result, and elements that a turn adds up.
pub(crate) const SIDE: usize = ROWS;

/// A result, row after row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [f32; SIDE * SIDE]);

/// What a turn multiplies. Of the left factor: 32 rows, each of 32 elements. Of the right one: rows
/// in pairs, of which the elements in the same column lie side by side.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Turn(pub(crate) [bf16; SIDE * SIDE]);

impl Block {
    pub(crate) const ZERO: Self = Self([0.0; SIDE * SIDE]);

    /// Row after row.
    pub(crate) fn rows(&mut self) -> &mut [[f32; SIDE]] {
        self.0.as_chunks_mut().0
    }
}

impl Turn {
    pub(crate) const ZERO: Self = Self([bf16::ZERO; SIDE * SIDE]);

    /// Rows of a left factor.
    pub(crate) fn rows(&self) -> &[[bf16; SIDE]] {
        self.0.as_chunks().0
    }

    pub(crate) fn rows_mut(&mut self) -> &mut [[bf16; SIDE]] {
        self.0.as_chunks_mut().0
    }
}

/// Turns and blocks in buffers that threads keep.
impl Scratch {
    /// Lanes of a turn.
    const TURN: usize = size_of::<Turn>() / size_of::<u32>();
    const BLOCK: usize = size_of::<Block>() / size_of::<u32>();

    /// A buffer for so many turns, holding whatever an earlier use left there.
    pub(crate) fn of_turns(n: usize) -> Self {
        Self::take(n * Self::TURN)
    }

    /// A buffer for so many blocks, holding whatever an earlier use left there.
    pub(crate) fn of_blocks(n: usize) -> Self {
        Self::take(n * Self::BLOCK)
    }

    pub(crate) fn turns(&self) -> &[Turn] {
        // SAFETY: a buffer begins at a cache line, as turns do, and any bits are elements.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / Self::TURN) }
    }

    pub(crate) fn turns_mut(&mut self) -> &mut [Turn] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() / Self::TURN) }
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / Self::BLOCK) }
    }

    pub(crate) fn blocks_mut(&mut self) -> &mut [Block] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() / Self::BLOCK)
        }
    }
}

/// The machine has AVX-512 and tiles of AMX, and is fastest with them.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// If these kernels are those.
    pub(crate) fn of(pairs: Pairs) -> Option<Self> {
        (pairs.are_tiles() && amx::exists()).then_some(Self(()))
    }

    /// Readies this thread.
    pub(crate) fn begin(self) -> Blocks {
        // SAFETY: the instructions exist.
        Blocks { plan: Plan::new(), _tiles: unsafe { Tiles::configure() } }
    }

    /// Rows as of a left factor become the columns of a right one.
    pub(crate) fn rows_to_columns(self, rows: &Turn, right: &mut Turn) {
        // SAFETY: the machine has AVX-512, and there are 32 rows of 16 lanes.
        unsafe { transpose([SIDE, STEPS], rows.0.as_ptr().cast(), right.0.as_mut_ptr().cast()) };
    }

    /// Rows as of a left factor become those of a right one.
    pub(crate) fn rows_to_right(self, rows: &Turn, right: &mut Turn) {
        // SAFETY: the machine has AVX-512, and a turn is so many lanes.
        unsafe { narrow::weave_rows(&rows.0, SIDE, &mut *right.0.as_mut_ptr().cast::<Lanes>()) };
    }

    /// The columns of rows as of a left factor become its rows.
    pub(crate) fn columns_to_left(self, rows: &Turn, left: &mut Turn) {
        let mut right = Turn::ZERO;
        self.rows_to_right(rows, &mut right);
        // SAFETY: the machine has AVX-512, and there are 16 rows of 32 lanes.
        unsafe { transpose([STEPS, SIDE], right.0.as_ptr().cast(), left.0.as_mut_ptr().cast()) };
    }

    /// A block's transpose.
    pub(crate) fn transpose(self, from: &Block, to: &mut Block) {
        // SAFETY: the machine has AVX-512, and there are 32 rows of 32 lanes.
        unsafe { transpose([SIDE, SIDE], from.0.as_ptr().cast(), to.0.as_mut_ptr().cast()) };
    }
}

type Lanes = [u32; STEPS * SIDE];

/// Transposes so many rows of so many lanes, multiples of 16.
///
/// # Safety
/// Both have so many lanes.
#[target_feature(enable = "avx512f")]
unsafe fn transpose([rows, columns]: [usize; 2], from: *const u32, to: *mut u32) {
    for row in (0..rows).step_by(16) {
        for column in (0..columns).step_by(16) {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (i, line) in lines.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *line =
                    unsafe { _mm512_loadu_si512(from.add((row + i) * columns + column).cast()) };
            }
            // SAFETY: as above.
            unsafe { transpose_rows(lines, to.add(column * rows + row), rows, u16::MAX) };
        }
    }
}

/// This thread's tiles, until they are dropped.
pub(crate) struct Blocks {
    plan: Plan,
    _tiles: Tiles,
}

impl Blocks {
    /// `to = left·right`, or `to += left·right`, over as many turns as both factors have.
    pub(crate) fn multiply(&mut self, to: &mut Block, add: bool, left: &[Turn], right: &[Turn]) {
        assert_eq!(left.len(), right.len(), "turns of the factors");
        let (to, row_bytes) = (to.0.as_mut_ptr(), SIDE * size_of::<f32>());
        self.plan.left = left.as_ptr().cast();
        self.plan.right = right.as_ptr().cast();
        self.plan.start = if add { to.cast() } else { null() };
        self.plan.start_row = row_bytes;
        self.plan.sums = to;
        self.plan.sums_row = row_bytes;
        // SAFETY: the factors hold so many turns and the block 32 rows, and tiles are configured.
        unsafe { self.plan.multiply([left.len() * STEPS, 0], 1) };
    }
}
