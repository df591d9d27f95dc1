//! Blocks of a piece that tiles multiply: one core packs a block's right factor and goes through its
//! panels of the left one. Of the last chunk, a core that has nothing left to do takes panels too:
//! on a machine that others use as well, one core may be several times as slow as the next.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
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
    last: Mutex<Option<Arc<Last>>>,
}

/// The last chunk of a block.
struct Last {
    /// Its strips of the right factor.
    right: Scratch,
    /// Sums of the chunks before, of all results.
    between: Scratch,
    /// Panels that nobody has taken.
    free: Mutex<Range<usize>>,
}

impl Last {
    fn free(&self) -> MutexGuard<'_, Range<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panel for a core that helps.
    fn spare(&self) -> Option<usize> {
        let mut free = self.free();
        if free.len() > OWN { free.next_back() } else { None }
    }
}

impl<'a> Block<'a> {
    pub(super) fn new(
        of: &'a Piece<'a>,
        left: &'a Left<'a>,
        panels: Range<usize>,
        strips: Range<usize>,
    ) -> Self {
        Self { of, left, panels, strips, last: Mutex::new(None) }
    }

    /// Multiplies chunk after chunk.
    pub(super) fn run(&self, hand: &mut Hand<'_>) {
        let (panels, last) = (self.panels.len(), self.of.chunks() - 1);
        let results = if last > 0 { panels * self.strips.len() } else { 0 };
        let mut between = Scratch::take(results * ROWS * ROWS);
        for chunk in 0..last {
            let right = self.of.pack_right(&self.strips, chunk);
            let between = between.as_mut_ptr().cast();
            (0..panels).for_each(|panel| self.multiply(hand, chunk, panel, &right, between));
        }
        let right = self.of.pack_right(&self.strips, last);
        let last = Arc::new(Last { right, between, free: Mutex::new(0..panels) });
        *self.last() = Some(Arc::clone(&last));
        loop {
            let Some(panel) = last.free().next() else { break };
            self.multiply_last(hand, &last, panel);
        }
        *self.last() = None;
    }

    /// Takes part if the block's own core is still at it, and far from done.
    pub(super) fn help(&self, hand: &mut Hand<'_>) {
        let last = self.last().clone();
        let Some(last) = last else { return };
        while let Some(panel) = last.spare() {
            self.multiply_last(hand, &last, panel);
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<Arc<Last>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn multiply_last(&self, hand: &mut Hand<'_>, last: &Last, panel: usize) {
        // Sums of the last chunk go elsewhere.
        let between = last.between.as_ptr().cast_mut().cast();
        self.multiply(hand, self.of.chunks() - 1, panel, &last.right, between);
    }

    /// Multiplies a chunk of a panel and all strips. Sums of the chunks before stand at `between`, and
    /// so do those of this one, unless it is the last.
    fn multiply(
        &self,
        hand: &mut Hand<'_>,
        chunk: usize,
        panel: usize,
        right: &[u32],
        between: *mut f32,
    ) {
        let of = self.of;
        self.left.aim(&mut hand.plan, self.panels.start + panel, chunk * of.chunk);
        for strip in 0..self.strips.len() {
            hand.plan.right = right[strip * of.panel_len(chunk)..].as_ptr();
            let number = panel * self.strips.len() + strip;
            let place = [self.panels.start + panel, self.strips.start + strip];
            hand.result(chunk, place, between.wrapping_add(number * ROWS * ROWS));
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
