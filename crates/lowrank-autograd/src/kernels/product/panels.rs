//! Packing for tiles of AMX: panels of 32 rows or columns in steps of two bf16, sixteen steps a tile.

#![expect(unsafe_code, reason = "calls of functions compiled for another instruction set")]

use half::bf16;

use super::{
    Factor,
    amx::{ROWS, STEPS},
    element::{Element, Lines},
    engine::Engine,
    narrow,
    pack::{self, Lanes, Strip},
    scratch::Scratch,
    tile::transpose_avx512,
};
use crate::weight::Elements;

/// Packs a strip of the left factor: tile after tile of 16 steps, each with 32 lines of them. Lines
/// that don't exist may be left as they are, since nothing reads their results.
pub(super) fn pack_left<T: Element>(
    engine: Engine,
    from: Lines<'_, T>,
    strip: Strip,
    out: &mut [u32],
) {
    let first = strip.first_line * from.line_stride + strip.first;
    let stride = from.line_stride.max(strip.len).max(1); // an empty inner dimension has none
    match T::elements(from.data.get(first..).unwrap_or_default()) {
        Elements::F32(data) if from.step_stride == 1 => {
            let lines = data.chunks(stride).take(strip.lines);
            // SAFETY: a machine with tiles of bf16 converts to bf16.
            unsafe { narrow::lines::<ROWS>(lines, strip.len, strip.scale, out) };
        }
        Elements::Bf16(data) if from.step_stride == 1 && strip.scale == 1.0 => {
            let lines = data.chunks(stride).take(strip.lines);
            // SAFETY: a machine with tiles of bf16 has AVX-512.
            unsafe { narrow::copy_lines::<ROWS>(lines, strip.len, out) };
        }
        _ => pack_across(engine, from, strip, out),
    }
}

/// The same where steps, or neither, lie contiguous: packs as for the right factor, and transposes.
fn pack_across<T: Element>(engine: Engine, from: Lines<'_, T>, strip: Strip, out: &mut [u32]) {
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

/// Packs lines of a right factor of bf16 from `first_line` on into panels of 32 side by side, `len`
/// elements of each from `first`; `panels` hold whole tiles, and zeros where there is nothing.
pub(super) fn pack_right(
    from: &Factor<'_>,
    [first_line, lines]: [usize; 2],
    [first, len]: [usize; 2],
    panels: &mut [&mut [u32]],
) {
    let Elements::Bf16(data) = from.elements else { return };
    let lines_of = Lines { data, line_stride: from.line_stride, step_stride: from.step_stride };
    let lanes = Lanes::Bf16Pairs;
    let strip = Strip { first_line, lines, first, len, width: ROWS, lanes, scale: 1.0 };
    match (from.step_stride, from.line_stride) {
        (1, stride) => {
            for (i, panel) in panels.iter_mut().enumerate() {
                let at = |line: usize| {
                    let line = i * ROWS + line;
                    let start = (first_line + line) * stride + first;
                    data.get(start..start + len).filter(|_| line < lines).unwrap_or_default()
                };
                // SAFETY: a machine with tiles of bf16 has AVX-512.
                unsafe { narrow::transpose_lines(at, panel) };
            }
        }
        (_, 1) => pack::across(lines_of, strip, panels),
        _ => {
            for (i, panel) in panels.iter_mut().enumerate() {
                let first_line = first_line + i * ROWS;
                let lines = ROWS.min(lines - i * ROWS);
                let strip = Strip { first_line, lines, ..strip };
                panel.fill(0);
                pack::one_by_one(lines_of, strip, &mut panel[..strip.steps() * ROWS]);
            }
        }
    }
}

/// What is added to a product beside the main factors, as steps of their own: the columns of f32
/// matrices (adapters'), and a bias as a column that meets ones. Each column takes three places of
/// bf16, high·high, low·high and high·low, whose sum is within 2⁻¹⁵ of the product of f32.
pub(super) struct Extra<'a> {
    pub(super) tails: &'a [(Factor<'a>, Factor<'a>)],
    pub(super) bias: Option<&'a [f32]>,
}

impl Extra<'_> {
    /// Steps, in whole tiles.
    pub(super) fn steps(&self) -> usize {
        let columns: usize = self.tails.iter().map(|(left, _)| left.inner).sum();
        let places = 3 * (columns + usize::from(self.bias.is_some()));
        places.div_ceil(2).next_multiple_of(STEPS)
    }

    /// Packs rows `first..first + rows` of the left side.
    pub(super) fn pack_left(&self, first: usize, rows: usize, out: &mut [u32]) {
        out.fill(0);
        for row in 0..rows {
            let mut put = |place: usize, v: bf16| {
                let (tile, within) = (place / 32, place % 32);
                set_half(&mut out[(tile * ROWS + row) * 16 + within / 2], within % 2, v);
            };
            let columns = self.tails.iter().flat_map(|(left, _)| {
                (0..left.inner).map(move |column| left.element(first + row, column))
            });
            for (i, v) in columns.chain(self.bias.map(|_| 1.0)).enumerate() {
                let [high, low] = split(v);
                put(3 * i, high);
                put(3 * i + 1, low);
                put(3 * i + 2, high);
            }
        }
    }

    /// Packs columns `first..first + columns` of the right side.
    pub(super) fn pack_right(&self, first: usize, columns: usize, out: &mut [u32]) {
        out.fill(0);
        for column in 0..columns {
            let mut put = |place: usize, v: bf16| {
                set_half(&mut out[place / 2 * ROWS + column], place % 2, v);
            };
            let lines = self.tails.iter().flat_map(|(_, right)| {
                (0..right.inner).map(move |i| right.element(first + column, i))
            });
            let bias = self.bias.and_then(|bias| bias.get(first + column)).copied();
            for (i, v) in lines.chain(bias).enumerate() {
                let [high, low] = split(v);
                put(3 * i, high);
                put(3 * i + 1, high);
                put(3 * i + 2, low);
            }
        }
    }
}

/// The low or high half of a lane.
fn set_half(lane: &mut u32, half: usize, v: bf16) {
    *lane |= u32::from(v.to_bits()) << (16 * half);
}

/// A number as the sum of two bf16.
fn split(v: f32) -> [bf16; 2] {
    let nearest = bf16::from_f32(v);
    // The nearest one of a finite number may be infinite: then the one towards zero.
    let high =
        if nearest.is_finite() { nearest } else { bf16::from_bits((v.to_bits() >> 16) as u16) };
    let low = if v.is_finite() { bf16::from_f32(v - high.to_f32()) } else { bf16::ZERO };
    [high, low]
}
