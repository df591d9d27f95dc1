//! Buffers that a thread keeps from one task to the next.

use std::cell::Cell;

/// Elements of a cache line, at which every buffer starts.
const LINE: usize = 16;

/// Grows to the largest length that was asked for.
#[derive(Default)]
pub(super) struct Buffer(Vec<f32>);

impl Buffer {
    /// `len` elements, holding whatever an earlier use left there.
    pub(super) fn room(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len + LINE {
            self.0.resize(len + LINE, 0.0);
        }
        let start = self.0.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        &mut self.0[start..start + len]
    }

    /// `len` times `value`.
    pub(super) fn filled(&mut self, len: usize, value: f32) -> &mut [f32] {
        let room = self.room(len);
        room.fill(value);
        room
    }
}

/// The buffers of one task.
#[derive(Default)]
pub(super) struct Scratch {
    /// Query rows of one head and gradients of its output, transposed.
    pub(super) queries: Buffer,
    pub(super) dy: Buffer,
    /// Tiles: scores and their gradients, slopes of the cap, dropout factors.
    pub(super) scores: Buffer,
    pub(super) ds: Buffer,
    pub(super) slopes: Buffer,
    pub(super) factors: Buffer,
    /// A line of bias or factors.
    pub(super) line: Buffer,
    /// One number for each query row.
    pub(super) max: Buffer,
    pub(super) sum: Buffer,
    pub(super) keep: Buffer,
    /// Results on their way to the packed tensors.
    pub(super) rows: Buffer,
    pub(super) transposed: Buffer,
    pub(super) dk: Buffer,
    pub(super) dv: Buffer,
}

impl Scratch {
    /// The running softmax of so many query rows that have seen nothing yet.
    pub(super) fn begin_softmax(&mut self, lanes: usize) {
        self.max.filled(lanes, f32::NEG_INFINITY);
        self.sum.filled(lanes, 0.0);
    }
}

thread_local! {
    static KEPT: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Runs `task` with this thread's buffers.
pub(super) fn with<R>(task: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = KEPT.take().unwrap_or_default();
    let result = task(&mut scratch);
    KEPT.set(Some(scratch));
    result
}
