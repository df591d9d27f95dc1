//! Packing for tiles of AMX: panels of 32 rows or columns in steps of two bf16, sixteen steps a tile.

#![expect(unsafe_code, reason = "calls of functions compiled for another instruction set")]

use super::{
    super::elementwise::piece,
    Factor,
    amx::{PLANES, ROWS, STEPS},
    element::{Element, Lines},
    engine::Engine,
    narrow,
    pack::{self, Lanes, Strip},
    scratch::Scratch,
    tile::transpose_avx512,
};
use crate::elements::Elements;

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
        // SAFETY: the target has 32 lines of 16 steps.
        unsafe { turn(from, to.as_mut_ptr(), STEPS) };
    }
}

/// Transposes 16 steps of 32 lanes into 32 lines, `stride` apart.
///
/// # Safety
/// The target has 16 lanes of each line, and the machine AVX-512.
unsafe fn turn(from: &[u32], to: *mut u32, stride: usize) {
    for half in [0, 16] {
        let mut block = [[0; 16]; 16];
        for (to, from) in block.iter_mut().zip(from.chunks_exact(ROWS)) {
            to.copy_from_slice(&from[half..half + 16]);
        }
        // SAFETY: the caller's promise.
        unsafe { transpose_avx512(&block, to.add(half * stride), stride, 16) };
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

/// [`pack_left`] of f32 as sums of three bf16: each tile in three planes.
pub(super) fn split_left<T: Element>(
    engine: Engine,
    from: Lines<'_, T>,
    strip: Strip,
    out: &mut [u32],
) {
    let first = strip.first_line * from.line_stride + strip.first;
    let stride = from.line_stride.max(strip.len).max(1);
    if let (Elements::F32(data), 1) =
        (T::elements(from.data.get(first..).unwrap_or_default()), from.step_stride)
    {
        let lines = data.chunks(stride).take(strip.lines);
        // SAFETY: a machine with tiles of bf16 converts to bf16.
        return unsafe { narrow::split_lines::<ROWS>(lines, strip.len, strip.scale, out) };
    }
    let rows = by_rows(engine, from, strip);
    let rows = rows.chunks(strip.len.next_multiple_of(16).max(1)).take(strip.lines);
    // SAFETY: as above.
    unsafe { narrow::split_lines::<ROWS>(rows, strip.len, 1.0, out) };
}

/// A strip's lines in f32, scaled, one after another, each filled up to a multiple of 16.
fn by_rows<T: Element>(engine: Engine, from: Lines<'_, T>, strip: Strip) -> Vec<f32> {
    let len = strip.len.next_multiple_of(16);
    let mut lanes = Scratch::take(len * ROWS);
    let strip = Strip { width: ROWS, lanes: Lanes::F32, ..strip };
    pack::pack(engine, from, strip, &mut lanes);
    lanes[strip.len * ROWS..].fill(0);
    let mut rows = vec![0_f32; ROWS * len];
    for (step, lanes) in lanes.chunks_exact(ROWS * 16).enumerate() {
        // SAFETY: the target has 32 rows of 16 elements from here on, and the machine AVX-512.
        unsafe { turn(lanes, rows[step * 16..].as_mut_ptr().cast(), len) };
    }
    rows
}

/// [`pack_right`] of any elements as sums of three bf16: 16 steps of each plane after another.
pub(super) fn split_right(
    from: &Factor<'_>,
    [first_line, lines]: [usize; 2],
    [first, len]: [usize; 2],
    panels: &mut [&mut [u32]],
) {
    if from.line_stride == 1 && from.step_stride != 1 {
        return split_across(from, [first_line, lines], [first, len], panels);
    }
    let mut room = Vec::new();
    for (i, panel) in panels.iter_mut().enumerate() {
        let lines = ROWS.min(lines - i * ROWS);
        let start = |line: usize| (first_line + i * ROWS + line) * from.line_stride;
        if let (Elements::F32(data), 1) = (from.elements, from.step_stride) {
            let line = |line: usize| {
                let start = start(line) + first;
                data.get(start..start + len).filter(|_| line < lines).unwrap_or_default()
            };
            // SAFETY: a machine with tiles of bf16 converts to bf16.
            unsafe { narrow::split_transposed(line, panel) };
            continue;
        }
        room.clear();
        for line in 0..lines {
            let element = |k: usize| from.number(start(line) + (first + k) * from.step_stride);
            room.extend((0..len).map(element));
        }
        let line = |line: usize| room.get(line * len..(line + 1) * len).unwrap_or_default();
        // SAFETY: as above.
        unsafe { narrow::split_transposed(line, panel) };
    }
}

/// The same where steps lie contiguous over all lines.
fn split_across(
    from: &Factor<'_>,
    [first_line, lines]: [usize; 2],
    [first, len]: [usize; 2],
    panels: &mut [&mut [u32]],
) {
    const PLANE: usize = STEPS * ROWS;
    let mut rooms = [Vec::new(), Vec::new()];
    for step in 0..len.div_ceil(2).next_multiple_of(STEPS) {
        let mut k = 2 * step;
        let rows = rooms.each_mut().map(|room| {
            let start = (first + k) * from.step_stride + first_line;
            let there = k < len;
            k += 1;
            if there { piece(from.elements, start..start + lines, room) } else { &[] }
        });
        let at = step / STEPS * PLANES * PLANE + step % STEPS * ROWS;
        for (i, panel) in panels.iter_mut().enumerate() {
            // SAFETY: a machine with tiles of bf16 converts to bf16.
            unsafe { narrow::split_woven(rows, i * ROWS, &mut panel[at..], PLANE) };
        }
    }
}

/// What is added to a product beside the main factors, as steps of their own: the columns of f32
/// matrices (adapters'), and a bias as a column that meets ones. Where the factors are bf16, each
/// column takes three places, high·high, low·high and high·low, whose sum is within 2⁻¹⁵ of the
/// product of f32; where they are sums of three bf16, so are these.
pub(super) struct Extra<'a> {
    pub(super) tails: &'a [(Factor<'a>, Factor<'a>)],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) planes: usize,
}

impl Extra<'_> {
    /// Steps, in whole tiles.
    pub(super) fn steps(&self) -> usize {
        let columns: usize = self.tails.iter().map(|(left, _)| left.inner).sum();
        let columns = columns + usize::from(self.bias.is_some());
        let places = if self.planes == 1 { 3 * columns } else { columns };
        places.div_ceil(2).next_multiple_of(STEPS)
    }

    /// Packs rows `first..first + rows` of the left side.
    pub(super) fn pack_left(&self, first: usize, rows: usize, out: &mut [u32]) {
        let numbers = |row: usize, numbers: &mut Vec<f32>| {
            self.tails.iter().for_each(|(left, _)| left.extend_by_line(first + row, numbers));
            numbers.extend(self.bias.map(|_| 1.0));
        };
        self.pack(rows, [0, 1, 0], numbers, out);
    }

    /// Packs columns `first..first + columns` of the right side.
    pub(super) fn pack_right(&self, first: usize, columns: usize, out: &mut [u32]) {
        let numbers = |column: usize, numbers: &mut Vec<f32>| {
            self.tails.iter().for_each(|(_, right)| right.extend_by_line(first + column, numbers));
            numbers.extend(self.bias.and_then(|bias| bias.get(first + column)));
        };
        let mut lines = Scratch::take(out.len());
        self.pack(columns, [0, 0, 1], numbers, &mut lines);
        let tiles = lines.chunks_exact(STEPS * ROWS).zip(out.chunks_exact_mut(STEPS * ROWS));
        for (from, to) in tiles {
            for (half, lines) in from.as_chunks::<16>().0.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: the target has 16 steps of 32 lanes, and the machine AVX-512.
                unsafe { transpose_avx512(lines, to[half * 16..].as_mut_ptr(), ROWS, 16) };
            }
        }
    }

    /// Packs the `numbers` of so many lines as tiles of 32 of them: the first parts of all numbers
    /// side by side, then the second ones and the third, in this order; or, of planes, each 32
    /// numbers' parts in a tile each.
    fn pack(
        &self,
        lines: usize,
        order: [usize; 3],
        numbers: impl Fn(usize, &mut Vec<f32>),
        out: &mut [u32],
    ) {
        const PLACES: usize = 2 * STEPS;
        out.fill(0);
        // SAFETY: a lane is two places.
        let out = unsafe { out.align_to_mut::<u16>().1 };
        let mut of_line = Vec::new();
        for line in 0..lines {
            of_line.clear();
            numbers(line, &mut of_line);
            for (block, numbers) in of_line.chunks(PLACES).enumerate() {
                // SAFETY: a machine with tiles of bf16 converts to bf16.
                let parts = unsafe { narrow::parts(numbers) };
                for (n, part) in order.into_iter().enumerate() {
                    let (mut place, part) = match self.planes {
                        1 => (n * of_line.len() + block * PLACES, &parts[part]),
                        planes => ((block * planes + n) * PLACES, &parts[n]),
                    };
                    let mut part = &part[..numbers.len()];
                    while !part.is_empty() {
                        let (tile, column) = (place / PLACES, place % PLACES);
                        let (now, rest) = part.split_at(part.len().min(PLACES - column));
                        let at = (tile * ROWS + line) * PLACES + column;
                        out[at..at + now.len()].copy_from_slice(now);
                        (part, place) = (rest, place + now.len());
                    }
                }
            }
        }
    }
}
