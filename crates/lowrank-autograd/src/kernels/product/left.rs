//! The left factor of a piece that tiles multiply: rows of bf16 as they lie in memory, whose tiles
//! the machine finds there, or panels into which it is packed.
//!
//! Panels are written by one core and read by another, which may take longer than multiplying them.

use half::bf16;
use rayon::prelude::*;

use super::{
    amx::{Plan, ROWS, STEPS},
    pack::Strip,
    scratch::Scratch,
    tiles::Piece,
};
use crate::elements::Elements;

/// The rows of a piece.
pub(super) struct Left<'a> {
    of: &'a Piece<'a>,
    /// From the first element to the last, and elements from row to row.
    rows: Option<(&'a [bf16], usize)>,
    /// Panels that aren't read where they lie: the last ones.
    packed: Scratch,
    /// The first of them.
    first_packed: usize,
    /// What is added, of all panels.
    beside: Scratch,
}

impl<'a> Left<'a> {
    /// Packs what has to be, for a core that goes over all rows so many times.
    pub(super) fn of(piece: &'a Piece<'a>, parallel: bool, passes: usize) -> Self {
        let rows = piece.rows[1];
        let (lying, panels) = (lying(piece, passes), rows.div_ceil(ROWS));
        // A tile has 16 rows, whether they exist or not.
        let first_packed = if lying.is_some() { rows / ROWS } else { 0 };
        let (main, beside) = (main_len(piece), beside_len(piece));
        let mut left = Self {
            of: piece,
            rows: lying,
            packed: Scratch::take((panels - first_packed) * main),
            first_packed,
            beside: Scratch::take(panels * beside),
        };
        in_panels(parallel, &mut left.packed, main, |i, out| pack(piece, first_packed + i, out));
        in_panels(parallel, &mut left.beside, beside, |panel, out| {
            let [row, lines] = lines(piece, panel);
            piece.extra.pack_left(row, lines, out);
        });
        left
    }

    /// Lets the plan read a panel, from `inner` elements on.
    pub(super) fn aim(&self, plan: &mut Plan, panel: usize, inner: usize) {
        plan.beside = self.beside[panel * beside_len(self.of)..].as_ptr();
        match self.rows {
            Some((data, stride)) if panel < self.first_packed => {
                plan.left = data[panel * ROWS * stride + inner..].as_ptr().cast();
                plan.left_row = stride * size_of::<bf16>();
                plan.left_turn = 2 * STEPS * size_of::<bf16>();
            }
            _ => {
                let start = (panel - self.first_packed) * main_len(self.of);
                let start = start + inner / 2 * ROWS * self.of.planes;
                (plan.left_row, plan.left_turn) = Plan::PANEL;
                plan.left = self.packed[start..].as_ptr();
            }
        }
    }
}

/// The factor's rows, if whole tiles can be read from them, and reading them is fast.
fn lying<'a>(piece: &Piece<'a>, passes: usize) -> Option<(&'a [bf16], usize)> {
    let (a, [first, len]) = (piece.of.a, piece.inner);
    let Elements::Bf16(data) = a.elements else { return None };
    let exact = piece.planes == 1 && piece.of.scale == 1.0;
    let tiles = exact && a.step_stride == 1 && len % (2 * STEPS) == 0;
    let start = piece.rows[0] * a.line_stride + first;
    let rows = data.get(start..start + piece.rows[1].saturating_sub(1) * a.line_stride + len)?;
    (tiles && passes <= lying_passes(piece)).then_some((rows, a.line_stride))
}

/// How often rows are read where they lie in the time that it takes to pack them: any number of
/// times if a chunk is all of them, one piece of memory. Parts of rows come more slowly than panels,
/// and those whose distance leaves them half of the places of a first-level cache don't stay there.
fn lying_passes(piece: &Piece<'_>) -> usize {
    let stride = piece.of.a.line_stride;
    match piece.chunk >= stride {
        true => usize::MAX,
        false if (stride * size_of::<bf16>()).is_multiple_of(2048) => 1,
        false => 2,
    }
}

/// Fills panels of so many lanes.
fn in_panels(
    parallel: bool,
    panels: &mut [u32],
    len: usize,
    fill: impl Fn(usize, &mut [u32]) + Sync,
) {
    let len = len.max(1);
    match parallel {
        true => panels.par_chunks_mut(len).enumerate().for_each(|(i, out)| fill(i, out)),
        false => panels.chunks_mut(len).enumerate().for_each(|(i, out)| fill(i, out)),
    }
}

/// Lanes of a panel.
fn main_len(piece: &Piece<'_>) -> usize {
    piece.inner[1].div_ceil(2).next_multiple_of(STEPS) * ROWS * piece.planes
}

/// Lanes of what is added to a panel's results.
fn beside_len(piece: &Piece<'_>) -> usize {
    piece.extra.steps() * ROWS * piece.planes
}

/// First line of a panel in the factor, and how many it has.
fn lines(piece: &Piece<'_>, panel: usize) -> [usize; 2] {
    let [row, rows] = piece.rows;
    [row + panel * ROWS, ROWS.min(rows - panel * ROWS)]
}

fn pack(piece: &Piece<'_>, panel: usize, out: &mut [u32]) {
    let [first_line, lines] = lines(piece, panel);
    let ([first, len], lanes, scale) = (piece.inner, piece.setting.lanes, piece.of.scale);
    let strip = Strip { first_line, lines, first, len, width: lines, lanes, scale };
    match piece.planes {
        1 => piece.setting.pack_left(&piece.of.a, strip, out),
        _ => piece.setting.split_left(&piece.of.a, strip, out),
    }
}
