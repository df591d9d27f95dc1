//! Products over packed panels, in the manner of Goto and van de Geijn ("Anatomy of
//! High-Performance Matrix Multiplication", 2008): a block of the left factor is packed once, every
//! task packs strips of the right factor and multiplies each with the whole block.

use rayon::prelude::*;

use super::{
    Factor, Job, Shared, amx,
    element::Lines,
    engine::Engine,
    pack::{self, Lanes, Strip},
    scratch::Scratch,
    tile::{AMX, AVX2_F32, AVX512_BF16, AVX512_F32, Kernel, Place, Run},
};
use crate::weight::Elements;

/// Most steps of the inner dimension that are packed at a time: strips stay in the second-level
/// cache.
const STEPS: usize = 768;
/// Most panels and rows of the left factor that are packed at a time.
const PANELS: usize = 48;
const ROWS: usize = 672;
/// Multiplications below which tasks cost more than they bring.
const SERIAL: usize = 1 << 17;
/// Tasks that a product is cut into if it has few strips.
const TASKS: usize = 8;

/// What stays the same over one product.
#[derive(Clone, Copy)]
struct Setting {
    engine: Engine,
    /// Rows and columns of a tile of the result.
    rows: usize,
    width: usize,
    lanes: Lanes,
    /// Panels hold a multiple of so many steps.
    whole: usize,
    kernels: &'static [Kernel],
}

impl Setting {
    fn of(engine: Engine, b: &Factor<'_>) -> Self {
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
            Engine::Amx if b.is_bf16() => set(amx::ROWS, 32, Lanes::Bf16Pairs, amx::STEPS, &AMX),
            Engine::Avx512Bf16 if b.is_bf16() => set(14, 32, Lanes::Bf16Pairs, 1, &AVX512_BF16),
            Engine::Avx512 | Engine::Avx512Bf16 | Engine::Amx => set(14, 32, f32s, 1, &AVX512_F32),
            Engine::Avx2 | Engine::Portable => set(6, 16, f32s, 1, &AVX2_F32),
        }
    }

    /// Steps of a panel over `len` elements of the inner dimension.
    fn steps(&self, len: usize) -> usize {
        len.div_ceil(self.lanes.per_step()).next_multiple_of(self.whole)
    }

    /// Packs a part of the left factor into `out`, in the layout that the kernel reads.
    fn pack_left(&self, from: &Factor<'_>, strip: Strip, out: &mut [u32]) {
        match (self.whole, from.elements) {
            (1, _) => self.pack(from, strip, out),
            (_, Elements::F32(data)) => amx::pack_left(from.lines_of(data), strip, out),
            (_, Elements::Bf16(data)) => amx::pack_left(from.lines_of(data), strip, out),
            (_, Elements::F16(data)) => amx::pack_left(from.lines_of(data), strip, out),
        }
    }

    /// Packs a part of `from` into `out`.
    fn pack(&self, from: &Factor<'_>, strip: Strip, out: &mut [u32]) {
        match from.elements {
            Elements::F32(data) => pack::pack(self.engine, from.lines_of(data), strip, out),
            Elements::Bf16(data) => pack::pack(self.engine, from.lines_of(data), strip, out),
            Elements::F16(data) => pack::pack(self.engine, from.lines_of(data), strip, out),
        }
    }
}

impl Factor<'_> {
    /// The factor over its elements.
    fn lines_of<'d, T>(&self, data: &'d [T]) -> Lines<'d, T> {
        Lines { data, line_stride: self.line_stride, step_stride: self.step_stride }
    }
}

/// A stretch of the inner dimension, with the tails after the last one.
#[derive(Clone, Copy)]
struct Stretch {
    first: usize,
    len: usize,
    starts: bool,
    tail: usize,
}

impl Job<'_> {
    /// Multiplies into memory at `to`, rows `row_stride` apart.
    ///
    /// # Safety
    /// `to` is writable for all rows, which don't overlap, and `engine` exists on this machine.
    #[expect(unsafe_code, reason = "the target is a pointer, since it may not be initialized yet")]
    pub(super) unsafe fn run_packed(&self, engine: Engine, to: *mut f32, row_stride: usize) {
        let setting = Setting::of(engine, &self.b);
        let (m, k) = (self.a.lines, self.a.inner);
        let tail = self.tails.iter().map(|(a, _)| a.inner).sum();
        let per_step = setting.lanes.per_step();
        let pieces = k.div_ceil(STEPS * per_step).max(1);
        let len = k.div_ceil(pieces).next_multiple_of(setting.whole * per_step);
        let panels = m.div_ceil(setting.rows);
        let most = (ROWS / setting.rows).min(PANELS);
        let per_block = panels.div_ceil(panels.div_ceil(most).max(1)) * setting.rows;
        for row in (0..m).step_by(per_block.max(1)) {
            let rows = per_block.min(m - row);
            for piece in 0..pieces {
                let first = (piece * len).min(k);
                let stretch = Stretch {
                    first,
                    len: len.min(k - first),
                    starts: piece == 0,
                    tail: if piece + 1 == pieces { tail } else { 0 },
                };
                self.block(&setting, row, rows, stretch, Shared(to), row_stride);
            }
        }
    }

    fn is_parallel(&self, rows: usize, stretch: Stretch) -> bool {
        self.parallel && rows * self.b.lines * (stretch.len + stretch.tail) > SERIAL
    }

    /// Rows `row..row + rows` of the target.
    fn block(
        &self,
        setting: &Setting,
        row: usize,
        rows: usize,
        stretch: Stretch,
        to: Shared,
        row_stride: usize,
    ) {
        let steps = setting.steps(stretch.len);
        let mut left = Scratch::take(rows.next_multiple_of(setting.rows) * steps);
        let mut left_tail = Scratch::take(rows * stretch.tail);
        let parallel = self.is_parallel(rows, stretch);
        let pack = |panel: usize, out: &mut [u32]| {
            let first_line = row + panel * setting.rows;
            let lines = setting.rows.min(row + rows - first_line);
            let strip = strip(setting, stretch, first_line, lines, lines, self.scale);
            setting.pack_left(&self.a, strip, out);
        };
        let size = (setting.rows * steps).max(1);
        match parallel {
            true => {
                left.par_chunks_mut(size).enumerate().for_each(|(panel, out)| pack(panel, out));
            }
            false => left.chunks_mut(size).enumerate().for_each(|(panel, out)| pack(panel, out)),
        }
        if stretch.tail > 0 {
            let size = setting.rows * stretch.tail;
            for (panel, out) in left_tail.chunks_mut(size).enumerate() {
                let first_line = row + panel * setting.rows;
                let lines = setting.rows.min(row + rows - first_line);
                self.pack_tails(setting, |(a, _)| a, first_line, lines, lines, out);
            }
        }
        let strips = self.b.lines.div_ceil(setting.width);
        let panels = rows.div_ceil(setting.rows);
        let cuts = TASKS.div_ceil(strips.max(1)).min(panels.max(1));
        let per_cut = panels.div_ceil(cuts.max(1)).max(1);
        let work = Work { of: self, setting, stretch, rows, left: &left, left_tail: &left_tail };
        let task = |index: usize| {
            let (column, cut) = (index / cuts * setting.width, index % cuts);
            let panels = (cut * per_cut).min(panels)..((cut + 1) * per_cut).min(panels);
            work.strip(column, panels, row, to, row_stride);
        };
        match parallel {
            true => (0..strips * cuts).into_par_iter().for_each(task),
            false => {
                let panels = 0..panels;
                (0..strips).for_each(|i| {
                    work.strip(i * setting.width, panels.clone(), row, to, row_stride);
                });
            }
        }
    }

    /// Packs one side of the tails, one after another.
    fn pack_tails<'b>(
        &'b self,
        setting: &Setting,
        side: impl Fn(&'b (Factor<'b>, Factor<'b>)) -> &'b Factor<'b>,
        first_line: usize,
        lines: usize,
        width: usize,
        mut out: &mut [u32],
    ) {
        let setting = Setting { lanes: Lanes::F32, ..*setting };
        for pair in self.tails {
            let from = side(pair);
            let stretch = Stretch { first: 0, len: from.inner, starts: false, tail: 0 };
            let (own, rest) = out.split_at_mut(from.inner * width);
            setting.pack(from, strip(&setting, stretch, first_line, lines, width, 1.0), own);
            out = rest;
        }
    }
}

fn strip(
    setting: &Setting,
    stretch: Stretch,
    first_line: usize,
    lines: usize,
    width: usize,
    scale: f32,
) -> Strip {
    let Stretch { first, len, .. } = stretch;
    Strip { first_line, lines, first, len, width, lanes: setting.lanes, scale }
}

/// A packed block of the left factor, to be multiplied with strips of the right one.
struct Work<'a> {
    of: &'a Job<'a>,
    setting: &'a Setting,
    stretch: Stretch,
    rows: usize,
    left: &'a [u32],
    left_tail: &'a [u32],
}

impl Work<'_> {
    /// Multiplies the strip at `column` with these panels.
    #[expect(unsafe_code, reason = "tile kernels take pointers")]
    fn strip(
        &self,
        column: usize,
        panels: std::ops::Range<usize>,
        row: usize,
        to: Shared,
        row_stride: usize,
    ) {
        let (setting, stretch) = (self.setting, self.stretch);
        let (width, columns) = (setting.width, setting.width.min(self.of.b.lines - column));
        let steps = setting.steps(stretch.len);
        let mut right = Scratch::take(width * steps);
        let mut right_tail = Scratch::take(width * stretch.tail);
        let own = strip(setting, stretch, column, columns, width, 1.0);
        setting.pack(&self.of.b, own, &mut right);
        right[own.steps() * width..].fill(0);
        if stretch.tail > 0 {
            self.of.pack_tails(setting, |(_, b)| b, column, columns, width, &mut right_tail);
        }
        let bias = self.of.bias.filter(|_| stretch.starts).and_then(|bias| bias.get(column..));
        for panel in panels {
            let first = panel * setting.rows;
            let rows = setting.rows.min(self.rows - first);
            let main = Run { steps, a: self.left[first * steps..].as_ptr(), b: right.as_ptr() };
            let tail = Run {
                steps: stretch.tail,
                a: self.left_tail[first * stretch.tail..].as_ptr(),
                b: right_tail.as_ptr(),
            };
            let place = Place {
                to: to.at((row + first) * row_stride + column),
                row_stride,
                rows,
                columns,
                add: self.of.add || !stretch.starts,
                bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            };
            // SAFETY: the panels hold `steps` steps each of as many lanes as the kernel reads, the
            // place is one tile of a target that `run`'s caller vouches for, and the kernel is of
            // an engine that exists here.
            unsafe { setting.kernels[rows - 1](main, tail, place) };
        }
    }
}
