//! Buffers for packed panels, kept by each thread from one product to the next.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// A cache line, so that panels start at one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as lanes, through pointers")] [u32; 16]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of lanes; it goes back to the thread that drops it.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` lanes with whatever an earlier use left in it.
    pub(crate) fn take(len: usize) -> Self {
        let needed = len.div_ceil(16);
        if needed == 0 {
            // Another one may want the buffer, which a cache still holds.
            return Self { lines: Vec::new(), len };
        }
        let mut lines = FREE.with_borrow_mut(|free| {
            let fits = free.iter().position(|lines| lines.len() >= needed);
            fits.map(|i| free.swap_remove(i)).or_else(|| free.pop()).unwrap_or_default()
        });
        if lines.len() < needed {
            lines.resize(needed, Line([0; 16]));
        }
        Self { lines, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() {
            return;
        }
        // At the end of a thread its free list may be gone before the last buffer.
        let _ = FREE.try_with(|free| free.borrow_mut().push(lines));
    }
}

#[expect(unsafe_code, reason = "aligned lines are read as lanes")]
impl Deref for Scratch {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: a `Line` is 16 lanes and nothing else, and there are lines for `len` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

#[expect(unsafe_code, reason = "aligned lines are read as lanes")]
impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
