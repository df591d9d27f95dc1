//! Packing: a strip of a matrix is laid out as a tile kernel reads it, widened or rounded on the
//! way to what the kernel multiplies.

use half::bf16;

use super::{
    super::simd::{has_bf16, prefetch, prefetch_early, vectorized},
    element::{Element, Lines},
    engine::Engine,
    narrow,
};
use crate::elements::Elements;

/// Lines and lanes of a block that is transposed in registers.
const BLOCK: usize = 16;
/// How many steps ahead memory is asked for where steps lie far from each other: as long as it
/// takes to come.
const AHEAD: usize = 32;

/// What a lane of a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// An f32 a step.
    F32,
    /// Two bf16, of two steps.
    Bf16Pairs,
}

impl Lanes {
    /// Elements of the inner dimension in a step.
    pub(crate) fn per_step(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16Pairs => 2,
        }
    }
}

/// What part of a matrix a panel holds, and how.
#[derive(Clone, Copy)]
pub(crate) struct Strip {
    pub(crate) first_line: usize,
    pub(crate) lines: usize,
    /// First and number of elements of the inner dimension.
    pub(crate) first: usize,
    pub(crate) len: usize,
    /// Lanes from one step to the next; those beyond `lines` are zeros.
    pub(crate) width: usize,
    pub(crate) lanes: Lanes,
    /// Factor of every element.
    pub(crate) scale: f32,
}

impl Strip {
    /// Steps of the panel.
    pub(crate) fn steps(&self) -> usize {
        self.len.div_ceil(self.lanes.per_step())
    }
}

/// Packs a strip into `out`, which has room for its steps.
#[expect(unsafe_code, reason = "a function compiled for another instruction set")]
pub(crate) fn pack<T: Element>(engine: Engine, from: Lines<'_, T>, strip: Strip, out: &mut [u32]) {
    let out = &mut out[..strip.steps() * strip.width];
    match (from.step_stride, from.line_stride, strip.lanes, T::elements(from.data)) {
        // SAFETY: the machine has the instructions.
        (1, _, Lanes::Bf16Pairs, Elements::F32(data)) if has_bf16() => unsafe {
            round_lines(engine, from.over(data), strip, out);
        },
        (1, _, lanes, _) => along_lines(engine, from, strip, lanes, out),
        (_, 1, ..) => across(from, strip, &mut [out]),
        _ => one_by_one(from, strip, out),
    }
}

vectorized! {
    /// Lines lie contiguous.
    fn along_lines[T: Element](
        engine: Engine, from: Lines<'_, T>, strip: Strip, lanes: Lanes, out: &mut [u32],
    ) {
        match lanes {
            Lanes::F32 => blocks(engine, from, strip, lanes, out, fill::<T>),
            Lanes::Bf16Pairs => blocks(engine, from, strip, lanes, out, fill_pairs::<T>),
        }
    }
}

/// The same of f32 that become pairs, by the machine's own instruction.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16")]
fn round_lines(engine: Engine, from: Lines<'_, f32>, strip: Strip, out: &mut [u32]) {
    blocks(engine, from, strip, Lanes::Bf16Pairs, out, |from, scale, to| {
        narrow::pairs(from, scale, to);
    });
}

/// Transposes blocks of 16 lines, each of which `fill` turns into lanes.
#[inline(always)]
fn blocks<T: Element>(
    engine: Engine,
    from: Lines<'_, T>,
    strip: Strip,
    lanes: Lanes,
    out: &mut [u32],
    fill: impl Fn(&[T], f32, &mut [u32; BLOCK]),
) {
    let per_block = BLOCK * lanes.per_step();
    let steps = strip.steps();
    for line in (0..strip.width).step_by(BLOCK) {
        let width = BLOCK.min(strip.width - line);
        let there = strip.lines.saturating_sub(line).min(width);
        for step in (0..steps).step_by(BLOCK) {
            let start = step * lanes.per_step();
            let len = per_block.min(strip.len - start);
            let mut block = Block([[0; BLOCK]; BLOCK]);
            for (i, to) in block.0.iter_mut().enumerate().take(there) {
                let at = (strip.first_line + line + i) * from.line_stride + strip.first + start;
                // The next lines' block of these steps: it takes that long to come.
                prefetch_early(from.data, at + BLOCK * from.line_stride);
                let source = from.data.get(at..at + len).unwrap_or_default();
                fill(source, strip.scale, to);
            }
            let whole = steps - step >= BLOCK;
            let rest = out.get_mut(step * strip.width + line..).unwrap_or_default();
            if whole {
                transpose(engine, &block, rest, strip.width, width);
            } else {
                let mut buffer = [0; BLOCK * BLOCK];
                transpose(engine, &block, &mut buffer, BLOCK, width);
                for (to, from) in rest.chunks_mut(strip.width).zip(buffer.chunks_exact(BLOCK)) {
                    to[..width].copy_from_slice(&from[..width]);
                }
            }
        }
    }
}

#[repr(align(64))]
struct Block([[u32; BLOCK]; BLOCK]);

#[inline(always)]
fn fill<T: Element>(from: &[T], scale: f32, to: &mut [u32; BLOCK]) {
    let mut wide = [0.0; BLOCK];
    match from.first_chunk::<BLOCK>() {
        Some(from) => T::widen(from, scale, &mut wide),
        None => T::widen(from, scale, &mut wide),
    }
    to.iter_mut().zip(&wide).for_each(|(to, v)| *to = v.to_bits());
}

#[inline(always)]
fn fill_pairs<T: Element>(from: &[T], scale: f32, to: &mut [u32; BLOCK]) {
    let mut narrow = [0; 2 * BLOCK];
    match from.first_chunk::<{ 2 * BLOCK }>() {
        Some(from) => T::narrow(from, scale, &mut narrow),
        None => T::narrow(from, scale, &mut narrow),
    }
    for (to, pair) in to.iter_mut().zip(narrow.as_chunks::<2>().0) {
        *to = u32::from(pair[0]) | u32::from(pair[1]) << 16;
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "transposition in vector registers")]
fn transpose(engine: Engine, block: &Block, out: &mut [u32], stride: usize, width: usize) {
    assert!(out.len() >= (BLOCK - 1) * stride + width, "a block doesn't fit");
    match engine {
        // SAFETY: the assertion leaves room, and the engine exists where it is chosen.
        Engine::Avx512 | Engine::Avx512Bf16 | Engine::Amx => unsafe {
            return super::tile::transpose_avx512(&block.0, out.as_mut_ptr(), stride, width);
        },
        // SAFETY: as above.
        Engine::Avx2 => unsafe {
            return super::tile::transpose_avx2(&block.0, out.as_mut_ptr(), stride, width);
        },
        Engine::Portable => {}
    }
    for (step, to) in out.chunks_mut(stride).enumerate().take(BLOCK) {
        to.iter_mut().zip(&block.0).take(width).for_each(|(to, line)| *to = line[step]);
    }
}

/// Packs a strip whose steps lie contiguous over all its lines into panels of its width side by
/// side: what is read lies in long runs. Panels are filled up with zeros.
#[expect(unsafe_code, reason = "a function compiled for another instruction set")]
pub(super) fn across<T: Element>(from: Lines<'_, T>, strip: Strip, panels: &mut [&mut [u32]]) {
    match (strip.lanes, T::elements(from.data)) {
        (Lanes::F32, _) => copy_steps(from, strip, panels),
        // SAFETY: the machine has the instructions.
        (Lanes::Bf16Pairs, Elements::F32(data)) if has_bf16() => unsafe {
            round_f32_steps(from.over(data), strip, panels);
        },
        // SAFETY: as above.
        (Lanes::Bf16Pairs, Elements::Bf16(data)) if has_bf16() && strip.scale == 1.0 => unsafe {
            weave_bf16_steps(from.over(data), strip, panels);
        },
        (Lanes::Bf16Pairs, _) => weave_steps(from, strip, panels),
    }
}

/// A strip's elements of one step, none beyond its end; those of a later step are asked for.
#[inline(always)]
fn elements<'a, T: Element>(from: Lines<'a, T>, strip: &Strip, step: usize) -> &'a [T] {
    let at = (strip.first + step) * from.step_stride + strip.first_line;
    if step + AHEAD < strip.len {
        for line in (0..strip.lines).step_by(64 / size_of::<T>()) {
            prefetch(from.data, at + AHEAD * from.step_stride + line);
        }
    }
    from.data.get(at..at + strip.lines).filter(|_| step < strip.len).unwrap_or_default()
}

/// The panels' lanes of one step, up to 32 at a time, each with the number of its first line.
#[inline(always)]
fn chunks<'a>(
    panels: &'a mut [&mut [u32]],
    step: usize,
    width: usize,
) -> impl Iterator<Item = (usize, &'a mut [u32])> {
    let lanes = panels.iter_mut();
    let chunks = lanes.flat_map(move |panel| panel[step * width..][..width].chunks_mut(32));
    chunks.enumerate().map(move |(i, to)| (i * width.min(32), to))
}

vectorized! {
    /// Each step is copied.
    fn copy_steps[T: Element](from: Lines<'_, T>, strip: Strip, panels: &mut [&mut [u32]]) {
        let steps = panels.first().map_or(0, |panel| panel.len() / strip.width);
        let mut wide = [0.0; 32];
        for step in 0..steps {
            let source = elements(from, &strip, step);
            for (first, to) in chunks(panels, step, strip.width) {
                let rest = source.get(first..).unwrap_or_default();
                match rest.first_chunk::<32>() {
                    Some(from) => T::widen(from, strip.scale, &mut wide),
                    None => {
                        wide = [0.0; 32];
                        T::widen(rest, strip.scale, &mut wide);
                    }
                }
                to.iter_mut().zip(&wide).for_each(|(to, v)| *to = v.to_bits());
            }
        }
    }
}

vectorized! {
    /// Two steps are woven into one.
    fn weave_steps[T: Element](from: Lines<'_, T>, strip: Strip, panels: &mut [&mut [u32]]) {
        let steps = panels.first().map_or(0, |panel| panel.len() / strip.width);
        let mut halves = [[0_u16; 32]; 2];
        for step in 0..steps {
            let sources =
                [elements(from, &strip, 2 * step), elements(from, &strip, 2 * step + 1)];
            for (first, to) in chunks(panels, step, strip.width) {
                for (half, source) in halves.iter_mut().zip(sources) {
                    let rest = source.get(first..).unwrap_or_default();
                    match rest.first_chunk::<32>() {
                        Some(from) => T::narrow(from, strip.scale, half),
                        None => {
                            *half = [0; 32];
                            T::narrow(rest, strip.scale, half);
                        }
                    }
                }
                match to.as_mut_array::<32>() {
                    Some(to) => weave(&halves, to),
                    None => {
                        let mut woven = [0; 32];
                        weave(&halves, &mut woven);
                        to.copy_from_slice(&woven[..to.len()]);
                    }
                }
            }
        }
    }
}

/// The same of f32, by the machine's own instruction.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round_f32_steps(from: Lines<'_, f32>, strip: Strip, panels: &mut [&mut [u32]]) {
    let block = |from: &[f32], stride, to: &mut [u32]| {
        narrow::round_rows(from, stride, strip.scale, to);
    };
    let step =
        |rows: [&[f32]; 2], first, to: &mut [u32]| narrow::round(rows, first, strip.scale, to);
    woven_steps(from, strip, panels, block, step);
}

/// The same of bf16 as they are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn weave_bf16_steps(from: Lines<'_, bf16>, strip: Strip, panels: &mut [&mut [u32]]) {
    let block = |from: &[bf16], stride, to: &mut [u32]| narrow::weave_rows(from, stride, to);
    let step = |rows: [&[bf16]; 2], first, to: &mut [u32]| narrow::weave(rows, first, to);
    woven_steps(from, strip, panels, block, step);
}

/// Fills panels with pairs of two steps: `block` those of 16 pairs of whole rows `stride` elements
/// apart, `step` others, from the elements of two rows from this number on.
#[inline(always)]
fn woven_steps<T: Element>(
    from: Lines<'_, T>,
    strip: Strip,
    panels: &mut [&mut [u32]],
    block: impl Fn(&[T], usize, &mut [u32]),
    step: impl Fn([&[T]; 2], usize, &mut [u32]),
) {
    let (width, stride) = (strip.width, from.step_stride);
    let steps = panels.first().map_or(0, |panel| panel.len() / width);
    for first in (0..steps).step_by(BLOCK) {
        // Panels may hold fewer steps than the strip.
        let there = first + BLOCK <= steps && 2 * (first + BLOCK) <= strip.len;
        let there = there && BLOCK * width == narrow::WOVEN;
        let whole = if there { (strip.lines / width).min(panels.len()) } else { 0 };
        let (wide, others) = panels.split_at_mut(whole);
        let start = (strip.first + 2 * first) * stride + strip.first_line;
        for (i, panel) in wide.iter_mut().enumerate() {
            let rows = from.data.get(start + i * width..).unwrap_or_default();
            block(rows, stride, &mut panel[first * width..][..narrow::WOVEN]);
        }
        if others.is_empty() {
            continue;
        }
        for at in first..steps.min(first + BLOCK) {
            let rows = [0, 1].map(|i| elements(from, &strip, 2 * at + i));
            for (i, panel) in others.iter_mut().enumerate() {
                step(rows, (whole + i) * width, &mut panel[at * width..][..width]);
            }
        }
    }
}

/// Pairs of two rows, the first row's elements in the low halves.
#[inline(always)]
fn weave([low, high]: &[[u16; 32]; 2], to: &mut [u32; 32]) {
    for i in 0..32 {
        to[i] = u32::from(low[i]) | u32::from(high[i]) << 16;
    }
}

/// Neither lies contiguous.
pub(super) fn one_by_one<T: Element>(from: Lines<'_, T>, strip: Strip, out: &mut [u32]) {
    let per_step = strip.lanes.per_step();
    for (step, to) in out.chunks_exact_mut(strip.width).enumerate() {
        for (line, to) in to.iter_mut().enumerate() {
            let element = |i: usize| {
                let inner = step * per_step + i;
                let at = (strip.first_line + line) * from.line_stride
                    + (strip.first + inner) * from.step_stride;
                let there = line < strip.lines && inner < strip.len;
                from.data.get(at..at + 1).filter(|_| there).unwrap_or_default()
            };
            *to = match strip.lanes {
                Lanes::F32 => {
                    let mut wide = [0.0];
                    T::widen(element(0), strip.scale, &mut wide);
                    wide[0].to_bits()
                }
                Lanes::Bf16Pairs => {
                    let mut pair = [[0]; 2];
                    pair.iter_mut()
                        .enumerate()
                        .for_each(|(i, to)| T::narrow(element(i), strip.scale, to));
                    u32::from(pair[0][0]) | u32::from(pair[1][0]) << 16
                }
            };
        }
    }
}
