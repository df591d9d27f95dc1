//! Blocks of a piece that tiles multiply: one core packs a block's right factor and goes through its
//! panels of the left one. A core that has nothing left to do takes panels too: on a machine that
//! others use as well, one core may be several times as slow as the next.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    Shared,
    amx::{self, Plan, ROWS, Sums},
    left::Left,
    scratch::Scratch,
    tiles::Piece,
};

/// Panels that are left to a block's own core at least: another one finds the right factor in a cache
/// that is not its own, and takes some times as long.
const OWN: usize = 3;

/// Panels of the left factor, by strips of the right one.
pub(super) struct Block<'a> {
    of: &'a Piece<'a>,
    left: &'a Left<'a>,
    panels: Range<usize>,
    strips: Range<usize>,
    /// While there is something to take part in.
    chunk: Mutex<Option<Arc<Chunk>>>,
    /// Whether the last chunk has begun.
    is_ending: AtomicBool,
}

/// What is multiplied before the next elements of the inner dimension are.
struct Chunk {
    number: usize,
    /// Strips of the right factor.
    right: Scratch,
    /// Sums of all results from one chunk to the next.
    between: Shared,
    /// Panels that nobody has taken.
    free: Mutex<Range<usize>>,
    /// Panels that other cores are at.
    helped: AtomicUsize,
}

impl Chunk {
    fn free(&self) -> MutexGuard<'_, Range<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<usize> {
        self.free().next()
    }

    /// A panel for a core that helps.
    fn spare(&self) -> Option<usize> {
        let mut free = self.free();
        let panel = if free.len() > OWN { free.next_back() } else { None };
        // Before the block's own core can find nothing free.
        self.helped.fetch_add(usize::from(panel.is_some()), Ordering::Relaxed);
        panel
    }
}

impl<'a> Block<'a> {
    pub(super) fn new(
        of: &'a Piece<'a>,
        left: &'a Left<'a>,
        panels: Range<usize>,
        strips: Range<usize>,
    ) -> Self {
        let (chunk, is_ending) = (Mutex::new(None), AtomicBool::new(false));
        Self { of, left, panels, strips, chunk, is_ending }
    }

    /// Multiplies chunk after chunk.
    pub(super) fn run(&self, hand: &mut Hand<'_>) {
        let (panels, chunks) = (self.panels.len(), self.of.chunks());
        let results = if chunks > 1 { panels * self.strips.len() } else { 0 };
        let mut between = Scratch::take(results * ROWS * ROWS);
        let between = Shared(between.as_mut_ptr().cast());
        for number in 0..chunks {
            let right = self.of.pack_right(&self.strips, number);
            let (free, helped) = (Mutex::new(0..panels), AtomicUsize::new(0));
            let chunk = Arc::new(Chunk { number, right, between, free, helped });
            *self.chunk() = Some(Arc::clone(&chunk));
            self.is_ending.store(number + 1 == chunks, Ordering::Relaxed);
            while let Some(panel) = chunk.next() {
                self.multiply(hand, &chunk, panel);
            }
            *self.chunk() = None;
            while chunk.helped.load(Ordering::Acquire) > 0 {
                thread::yield_now();
            }
        }
    }

    /// Takes part while the block's own core is far from done with a chunk; says whether there may be
    /// more to do later.
    pub(super) fn help(&self, hand: &mut Hand<'_>) -> bool {
        let is_ending = self.is_ending.load(Ordering::Relaxed);
        let chunk = self.chunk().clone();
        while let Some((chunk, panel)) = chunk.as_ref().and_then(|c| Some((c, c.spare()?))) {
            self.multiply(hand, chunk, panel);
            chunk.helped.fetch_sub(1, Ordering::Release);
        }
        !is_ending
    }

    fn chunk(&self) -> MutexGuard<'_, Option<Arc<Chunk>>> {
        self.chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Multiplies a panel and all strips.
    fn multiply(&self, hand: &mut Hand<'_>, chunk: &Chunk, panel: usize) {
        let (of, number) = (self.of, chunk.number);
        self.left.aim(&mut hand.plan, self.panels.start + panel, number * of.chunk);
        for strip in 0..self.strips.len() {
            hand.plan.right = chunk.right[strip * of.panel_len(number)..].as_ptr();
            let result = panel * self.strips.len() + strip;
            let place = [self.panels.start + panel, self.strips.start + strip];
            hand.result(number, place, chunk.between.at(result * ROWS * ROWS));
        }
    }
}

/// What a core multiplies with.
pub(super) struct Hand<'a> {
    of: &'a Piece<'a>,
    /// Sums of results of a last chunk: while one is made the other one waits.
    sums: [Sums; 2],
    /// Which of them is next.
    next: usize,
    plan: Plan,
    _tiles: amx::Tiles,
}

impl<'a> Hand<'a> {
    #[expect(unsafe_code, reason = "tile registers need a configuration")]
    pub(super) fn new(of: &'a Piece<'a>) -> Self {
        let mut plan = Plan::new();
        plan.sums_row = ROWS * size_of::<f32>();
        plan.to = of.place(0, 0);
        // SAFETY: this runs where tiles exist.
        let tiles = unsafe { amx::Tiles::configure() };
        Self { of, sums: [Sums::new(), Sums::new()], next: 0, plan, _tiles: tiles }
    }

    /// Multiplies the panels that the plan reads: a chunk of the result of this panel and strip.
    #[expect(unsafe_code, reason = "tile kernels take pointers")]
    fn result(&mut self, chunk: usize, [panel, strip]: [usize; 2], between: *mut f32) {
        let (of, plan) = (self.of, &mut self.plan);
        let (row, column) = (panel * ROWS, strip * ROWS);
        let size = [of.rows[1] - row, of.of.b.lines - column].map(|len| len.min(ROWS));
        let (place, whole) = (of.place(row, column), size == [ROWS; 2]);
        let (_, [main, steps]) = of.chunk(chunk);
        let begin = of.begin.map(|begin| begin.place(row, column));
        let start = match chunk {
            0 => begin.filter(|_| whole),
            _ => Some((between.cast_const().cast(), plan.sums_row)),
        };
        (plan.start, plan.start_row) = start.unwrap_or((std::ptr::null(), 0));
        let is_last = chunk + 1 == of.chunks();
        plan.sums = if is_last { self.sums[self.next].as_mut_ptr() } else { between };
        // SAFETY: the panels hold `steps` steps, sums have room where they stand, whole results are
        // read and put where the target has room, and this thread's tiles are configured.
        unsafe {
            plan.multiply([main, steps - main], of.planes);
            plan.waiting = std::ptr::null();
            match (is_last, whole) {
                (true, true) => {
                    plan.waiting = plan.sums;
                    self.next = 1 - self.next;
                }
                (true, false) => place.put_edge(plan.sums, size, begin),
                (false, _) => {}
            }
        }
        plan.to = place;
    }

    /// Puts the result that waits.
    #[expect(unsafe_code, reason = "tile kernels take pointers")]
    pub(super) fn finish(self) {
        if !self.plan.waiting.is_null() {
            // SAFETY: a whole result waits, and has room.
            unsafe { self.plan.to.put(self.plan.waiting, 0) };
        }
    }
}
