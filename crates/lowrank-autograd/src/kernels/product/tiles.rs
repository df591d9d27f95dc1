//! Products in tiles of AMX, of bf16 or of f32 as sums of three bf16, whose arithmetic takes so
//! little time that the rest is what counts: panels come from the second-level cache; a result is
//! rounded and put where it belongs while the next one is made.
//!
//! A block of the left factor is packed once for all tasks, if it has to be ([`Left`]). Each task packs
//! a block of strips of the right one and goes through it row by row, so that what it puts lies side
//! by side ([`Block`]).

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use half::bf16;
use rayon::prelude::*;

use super::{
    Job, Shared,
    amx::{Place, ROWS, STEPS},
    block::{Block, Hand},
    blocked::SERIAL,
    engine::Engine,
    left::Left,
    panels::{self, Extra},
    scratch::Scratch,
    setting::Setting,
};

/// Of bf16: the first-level cache holds a chunk of a panel of the left factor, the second-level one
/// the sums of a block.
const NARROW: Cut = Cut { inner: usize::MAX, whole: 1024, chunk: 576, height: 512, strips: 16 };
/// Of f32, whose panels are three times as large, and whose products take longest: the second-level
/// cache holds pieces of both factors.
const SPLIT: Cut = Cut { inner: 576, whole: 576, chunk: 576, height: 512, strips: 9 };

/// Most that is multiplied at a time.
struct Cut {
    /// Elements of the inner dimension that go through all columns before the next ones do.
    inner: usize,
    /// Elements of these that go through a block at once, so that its sums don't have to wait in a
    /// cache.
    whole: usize,
    /// If there are more: elements of them that go through it before the next ones do.
    chunk: usize,
    /// Rows.
    height: usize,
    /// Strips of columns of a block.
    strips: usize,
}

/// The length of equal parts of a dimension that are whole tiles, not much longer than `most`.
fn parts(len: usize, most: usize) -> usize {
    let parts = len.div_ceil(most).max(1);
    len.div_ceil(parts).next_multiple_of(2 * STEPS).max(1)
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) enum Out {
    F32(*mut f32),
    /// Rounded.
    Bf16(*mut bf16),
}

impl Out {
    fn at(self, offset: usize) -> *mut u8 {
        match self {
            Self::F32(to) => to.wrapping_add(offset).cast(),
            Self::Bf16(to) => to.wrapping_add(offset).cast(),
        }
    }

    fn size(self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::Bf16(_) => size_of::<bf16>(),
        }
    }
}

/// A matrix of the target's shape: its memory and elements from row to row.
#[derive(Clone, Copy)]
pub(super) struct Rows<P> {
    at: P,
    stride: usize,
}

impl Rows<Shared> {
    /// The memory from an element on, and bytes from one row to the next.
    pub(super) fn place(&self, row: usize, column: usize) -> (*const u8, usize) {
        let at = self.at.at(row * self.stride + column);
        (at.cast_const().cast(), self.stride * size_of::<f32>())
    }
}

/// A piece of the inner dimension for some of the rows.
pub(super) struct Piece<'a> {
    pub(super) of: &'a Job<'a>,
    pub(super) setting: Setting,
    /// How many bf16 a number is the sum of.
    pub(super) planes: usize,
    /// Most strips of a block.
    strips: usize,
    /// First row and number of rows.
    pub(super) rows: [usize; 2],
    /// First and number of elements of the inner dimension.
    pub(super) inner: [usize; 2],
    /// How many of them go through a block at a time.
    pub(super) chunk: usize,
    pub(super) extra: Extra<'a>,
    /// Whether sums begin with what stands there; from row 0 on.
    pub(super) begin: Option<Rows<Shared>>,
    to: Rows<Out>,
}

#[expect(unsafe_code, reason = "tasks write disjoint parts of one target")]
// SAFETY: every task writes elements of its own.
unsafe impl Sync for Piece<'_> {}

impl Job<'_> {
    /// Multiplies into memory at `to`, rows `stride` apart.
    ///
    /// # Safety
    /// `to` is writable for all rows, which don't overlap, and the machine has AMX.
    #[expect(unsafe_code, reason = "the target is a pointer, since it may not be initialized yet")]
    pub(super) unsafe fn run_tiles(&self, planes: usize, to: Out, stride: usize) {
        let setting = Setting::of(Engine::Amx, true);
        let (m, n, k) = (self.a.lines, self.b.lines, self.a.inner);
        let cut = if planes == 1 { NARROW } else { SPLIT };
        let len = parts(k, cut.inner);
        let pieces = k.div_ceil(len).max(1);
        for row in (0..m).step_by(cut.height) {
            let rows = cut.height.min(m - row);
            // Rounded once, at the end.
            let mut sums = match to {
                Out::Bf16(_) if pieces > 1 => Scratch::take(rows * n),
                _ => Scratch::take(0),
            };
            let between = match to {
                Out::F32(to) => Rows { at: Shared(to.wrapping_add(row * stride)), stride },
                Out::Bf16(_) => Rows { at: Shared(sums.as_mut_ptr().cast()), stride: n },
            };
            for piece in 0..pieces {
                let (first, is_last) = ((piece * len).min(k), piece + 1 == pieces);
                let tails = if is_last { self.tails } else { &[] };
                let to = match to {
                    Out::Bf16(to) if is_last => Out::Bf16(to.wrapping_add(row * stride)),
                    _ => Out::F32(between.at.0),
                };
                let stride = if matches!(to, Out::F32(_)) { between.stride } else { stride };
                let now = len.min(k - first);
                let chunk = if now <= cut.whole { cut.whole } else { cut.chunk };
                let piece = Piece {
                    of: self,
                    setting,
                    planes,
                    strips: cut.strips,
                    rows: [row, rows],
                    inner: [first, now],
                    chunk: parts(now, chunk),
                    extra: Extra { tails, bias: self.bias.filter(|_| is_last), planes },
                    begin: (self.add || piece > 0).then_some(between),
                    to: Rows { at: to, stride },
                };
                piece.multiply();
            }
        }
    }
}

impl Piece<'_> {
    pub(super) fn chunks(&self) -> usize {
        self.inner[1].div_ceil(self.chunk).max(1)
    }

    /// First and number of elements of the inner dimension of a chunk, and the steps of its panels
    /// as of those of all.
    pub(super) fn chunk(&self, number: usize) -> ([usize; 2], [usize; 2]) {
        let before = number * self.chunk;
        let len = self.chunk.min(self.inner[1] - before);
        let main = len.div_ceil(2).next_multiple_of(STEPS);
        let is_last = number + 1 == self.chunks();
        let all = main + if is_last { self.extra.steps() } else { 0 };
        ([self.inner[0] + before, len], [main, all])
    }

    fn multiply(&self) {
        let rows = self.rows[1];
        let (panels, strips) = (rows.div_ceil(ROWS), self.of.b.lines.div_ceil(ROWS));
        let parallel = self.of.parallel && rows * self.of.b.lines * self.inner[1] > SERIAL;
        // How work is cut up makes no difference to any sum.
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let blocks = strips.div_ceil(self.strips).next_multiple_of(threads).min(strips);
        let left = Left::of(self, parallel, blocks.div_ceil(threads));
        let cuts = threads.div_ceil(blocks.max(1)).min(panels.max(1));
        let block = |index: usize| {
            let part = |i: usize, of: usize, all: usize| i * all / of..(i + 1) * all / of;
            let (block, cut) = (index / cuts, index % cuts);
            Block::new(self, &left, part(cut, cuts, panels), part(block, blocks, strips))
        };
        let all: Vec<Block<'_>> = (0..blocks * cuts).map(block).collect();
        if !parallel {
            let mut hand = Hand::new(self);
            all.iter().for_each(|block| block.run(&mut hand));
            return hand.finish();
        }
        let begun = AtomicUsize::new(0);
        all.par_iter().with_max_len(1).for_each(|block| {
            begun.fetch_add(1, Ordering::Relaxed);
            let mut hand = Hand::new(self);
            block.run(&mut hand);
            let have_all_begun = begun.load(Ordering::Relaxed) == all.len();
            while have_all_begun && all.iter().filter(|block| block.help(&mut hand)).count() > 0 {
                thread::yield_now();
            }
            hand.finish();
        });
    }

    /// The target's memory from an element on.
    pub(super) fn place(&self, row: usize, column: usize) -> Place {
        let Rows { at, stride } = self.to;
        let narrow = matches!(at, Out::Bf16(_));
        Place { at: at.at(row * stride + column), row_bytes: stride * at.size(), narrow }
    }

    pub(super) fn pack_right(&self, strips: &Range<usize>, chunk: usize) -> Scratch {
        let (inner, [main, steps]) = self.chunk(chunk);
        let mut right = Scratch::take(strips.len() * self.panel_len(chunk));
        let first = strips.start * ROWS;
        let lines = (self.of.b.lines - first).min(strips.len() * ROWS);
        let mut beside = Vec::with_capacity(strips.len());
        let panels = right.chunks_exact_mut(self.panel_len(chunk));
        let mut panels: Vec<&mut [u32]> = panels
            .map(|panel| {
                let (own, rest) = panel.split_at_mut(main * ROWS * self.planes);
                beside.push(&mut rest[..(steps - main) * ROWS * self.planes]);
                own
            })
            .collect();
        match self.planes {
            1 => panels::pack_right(&self.of.b, [first, lines], inner, &mut panels),
            _ => panels::split_right(&self.of.b, [first, lines], inner, &mut panels),
        }
        if steps > main {
            for (i, out) in beside.into_iter().enumerate() {
                let columns = ROWS.min(lines - i * ROWS);
                self.extra.pack_right(first + i * ROWS, columns, out);
            }
        }
        right
    }

    /// Lanes from one panel of the right factor to the next: not a multiple of a page, so that the
    /// same steps of all don't want the same lines of a cache.
    pub(super) fn panel_len(&self, chunk: usize) -> usize {
        let (_, [_, steps]) = self.chunk(chunk);
        steps * ROWS * self.planes + 32
    }
}
