//! Products over packed panels, in the manner of Goto and van de Geijn ("Anatomy of
//! High-Performance Matrix Multiplication", 2008): a block of the left factor is packed once, every
//! task packs strips of the right factor and multiplies each with the whole block.

use rayon::prelude::*;

use super::{
    Factor, Job, Shared,
    engine::Engine,
    pack::{Lanes, Strip},
    scratch::Scratch,
    setting::Setting,
    tile::{Place, Run},
};

/// Most steps of the inner dimension that are packed at a time: strips stay in the second-level
/// cache.
const STEPS: usize = 768;
/// Most panels and rows of the left factor that are packed at a time.
const PANELS: usize = 48;
const ROWS: usize = 672;
/// Multiplications below which tasks cost more than they bring.
pub(super) const SERIAL: usize = 1 << 17;
/// Tasks that a product is cut into if it has few strips.
const TASKS: usize = 8;

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
        let setting = Setting::of(engine, self.rounds && self.b.is_bf16());
        let (m, k) = (self.a.lines, self.a.inner);
        let tail = self.tails.iter().map(|(a, _)| a.inner).sum();
        let per_step = setting.lanes.per_step();
        let pieces = k.div_ceil(STEPS * per_step).max(1);
        let len = k.div_ceil(pieces).next_multiple_of(per_step);
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
            setting.pack(&self.a, strip, out);
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
        let woven = (parallel && self.b.line_stride == 1 && strips > 1)
            .then(|| self.pack_across(setting, stretch, strips));
        let (left, left_tail, right) = (&*left, &*left_tail, woven.as_deref());
        let work = Work { of: self, setting, stretch, rows, left, left_tail, right };
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

    /// Packs all strips of a right factor whose steps lie contiguous over all lines, as in the
    /// gradient of a linear layer's input: strip by strip, it would be read in short runs. The
    /// strips lie a [`panel`] apart.
    #[expect(unsafe_code, reason = "tasks write parts of one buffer")]
    fn pack_across(&self, setting: &Setting, stretch: Stretch, strips: usize) -> Scratch {
        let (steps, width) = (setting.steps(stretch.len), setting.width);
        let panel = panel(steps, width);
        let mut right = Scratch::take(strips * panel);
        let to = Shared(right.as_mut_ptr().cast());
        let per_task = steps.div_ceil(TASKS).clamp(8, 64);
        (0..steps.div_ceil(per_task)).into_par_iter().for_each(|task| {
            let first = task * per_task;
            let len = per_task.min(steps - first) * width;
            let mut panels: Vec<&mut [u32]> = (0..strips)
                // SAFETY: the buffer holds all panels, of which each task has steps of its own.
                .map(|i| unsafe {
                    let start = to.at(i * panel + first * width).cast();
                    std::slice::from_raw_parts_mut(start, len)
                })
                .collect();
            setting.pack_across(&self.b, stretch.first, first, stretch.len, &mut panels);
        });
        right
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

/// Lanes from one woven panel to the next: not a multiple of a page, so that the panels' same steps
/// don't all want the same lines of a cache.
fn panel(steps: usize, width: usize) -> usize {
    steps * width + 32
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
    /// The right factor, where it was packed as a whole.
    right: Option<&'a [u32]>,
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
        let mut packed = Scratch::take(if self.right.is_some() { 0 } else { width * steps });
        let right = match self.right {
            Some(right) => &right[column / width * panel(steps, width)..],
            None => {
                let own = strip(setting, stretch, column, columns, width, 1.0);
                setting.pack(&self.of.b, own, &mut packed);
                &packed
            }
        };
        let mut right_tail = Scratch::take(width * stretch.tail);
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
