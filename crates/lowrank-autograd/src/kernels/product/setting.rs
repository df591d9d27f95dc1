//! How an engine multiplies: its tiles, what a lane holds, and the kernels.

use super::{
    Factor, amx,
    element::Lines,
    engine::Engine,
    pack::{self, Lanes, Strip},
    panels,
    tile::{AVX2_F32, AVX512_BF16, AVX512_F32, Kernel},
};
use crate::elements::Elements;

/// What stays the same over one product.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) engine: Engine,
    /// Rows and columns of a tile of the result.
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) lanes: Lanes,
    /// Panels hold a multiple of so many steps.
    pub(super) whole: usize,
    /// For 1, 2, … rows; tiles of AMX have their own way.
    pub(super) kernels: &'static [Kernel],
}

impl Setting {
    pub(super) fn of(engine: Engine, pairs: bool) -> Self {
        let f32s = Lanes::F32;
        let set = |rows, width, lanes, whole, kernels| Self {
            engine,
            rows,
            width,
            lanes,
            whole,
            kernels,
        };
        match engine {
            Engine::Amx if pairs => set(amx::ROWS, 32, Lanes::Bf16Pairs, amx::STEPS, &[]),
            Engine::Avx512Bf16 if pairs => set(14, 32, Lanes::Bf16Pairs, 1, &AVX512_BF16),
            Engine::Avx512 | Engine::Avx512Bf16 | Engine::Amx => set(14, 32, f32s, 1, &AVX512_F32),
            Engine::Avx2 | Engine::Portable => set(6, 16, f32s, 1, &AVX2_F32),
        }
    }

    /// Readies this thread for the kernels, until the guard is dropped.
    #[expect(unsafe_code, reason = "tile registers need a configuration")]
    pub(super) fn begin(&self) -> Option<amx::Tiles> {
        // SAFETY: an engine is chosen only where it exists.
        (self.whole == amx::STEPS).then(|| unsafe { amx::Tiles::configure() })
    }

    /// Steps of a panel over `len` elements of the inner dimension.
    pub(super) fn steps(&self, len: usize) -> usize {
        len.div_ceil(self.lanes.per_step()).next_multiple_of(self.whole)
    }

    /// Packs a part of the left factor into `out`, in the layout that the kernel reads.
    pub(super) fn pack_left(&self, from: &Factor<'_>, strip: Strip, out: &mut [u32]) {
        match (self.whole, from.elements) {
            (amx::STEPS, Elements::F32(data)) => {
                panels::pack_left(self.engine, from.lines_of(data), strip, out);
            }
            (amx::STEPS, Elements::Bf16(data)) => {
                panels::pack_left(self.engine, from.lines_of(data), strip, out);
            }
            _ => self.pack(from, strip, out),
        }
    }

    /// Packs a part of the left factor as sums of three bf16.
    pub(super) fn split_left(&self, from: &Factor<'_>, strip: Strip, out: &mut [u32]) {
        match from.elements {
            Elements::F32(data) => {
                panels::split_left(self.engine, from.lines_of(data), strip, out);
            }
            Elements::Bf16(data) => {
                panels::split_left(self.engine, from.lines_of(data), strip, out);
            }
            Elements::F16(data) => {
                panels::split_left(self.engine, from.lines_of(data), strip, out);
            }
        }
    }

    /// Packs all lines of `from` into panels side by side, which hold the steps from number `step`
    /// of a stretch on, `len` elements from `first`.
    pub(super) fn pack_across(
        &self,
        from: &Factor<'_>,
        first: usize,
        step: usize,
        len: usize,
        panels: &mut [&mut [u32]],
    ) {
        let skipped = step * self.lanes.per_step();
        let strip = Strip {
            first_line: 0,
            lines: from.lines,
            first: first + skipped,
            len: len.saturating_sub(skipped),
            width: self.width,
            lanes: self.lanes,
            scale: 1.0,
        };
        match from.elements {
            Elements::F32(data) => pack::across(from.lines_of(data), strip, panels),
            Elements::Bf16(data) => pack::across(from.lines_of(data), strip, panels),
            Elements::F16(data) => pack::across(from.lines_of(data), strip, panels),
        }
    }

    /// Packs a part of `from` into `out`.
    pub(super) fn pack(&self, from: &Factor<'_>, strip: Strip, out: &mut [u32]) {
        match from.elements {
            Elements::F32(data) => pack::pack(self.engine, from.lines_of(data), strip, out),
            Elements::Bf16(data) => pack::pack(self.engine, from.lines_of(data), strip, out),
            Elements::F16(data) => pack::pack(self.engine, from.lines_of(data), strip, out),
        }
    }
}

/// As the function of this name above: a panel of f32 is a transpose.
#[expect(unsafe_code, reason = "lanes are written as the floats that they are")]
pub(super) fn transpose(from: &Factor<'_>, scale: f32, width: usize, to: &mut [f32]) {
    let (lines, len) = (from.lines.min(width), from.inner);
    let strip = Strip { first_line: 0, lines, first: 0, len, width, lanes: Lanes::F32, scale };
    // SAFETY: a lane has the size of an f32, and packing as f32 writes nothing else.
    let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len()) };
    Setting::of(Engine::best(), false).pack(from, strip, to);
}

impl Factor<'_> {
    /// The factor over its elements.
    fn lines_of<'d, T>(&self, data: &'d [T]) -> Lines<'d, T> {
        Lines { data, line_stride: self.line_stride, step_stride: self.step_stride }
    }
}
