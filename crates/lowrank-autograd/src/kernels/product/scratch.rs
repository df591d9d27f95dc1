//! Buffers for packed panels, kept by each thread from one product to the next.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A cache line, so that panels start at one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as lanes, through pointers")] [u32; 16]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that a thread keeps for itself.
const OWN: usize = 24;

/// What threads have dropped beyond that: where one takes what another drops, its own would run out.
static SHARED: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

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
        let own = FREE.with_borrow_mut(|free| fitting(free, needed));
        let found = own.or_else(|| fitting(&mut shared(), needed));
        let lines = found.unwrap_or_else(|| {
            // In place of the largest, so that what earlier lengths needed doesn't pile up.
            FREE.with_borrow_mut(|free| {
                if let Some(largest) = (0..free.len()).max_by_key(|&i| free[i].len()) {
                    free.swap_remove(largest);
                }
            });
            vec![Line([0; 16]); needed]
        });
        Self { lines, len }
    }
}

/// The smallest buffer that has so many lines.
fn fitting(free: &mut Vec<Vec<Line>>, needed: usize) -> Option<Vec<Line>> {
    let fits = (0..free.len()).filter(|&i| free[i].len() >= needed);
    fits.min_by_key(|&i| free[i].len()).map(|i| free.swap_remove(i))
}

fn shared() -> MutexGuard<'static, Vec<Vec<Line>>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() {
            return;
        }
        // At the end of a thread its free list may be gone before the last buffer.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < OWN { free.push(lines) } else { shared().push(lines) }
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_another_thread_drops_come_back() {
        const LINES: usize = 54_321; // nobody else's
        let (to, from) = std::sync::mpsc::channel::<Scratch>();
        let (done, wait) = std::sync::mpsc::channel();
        let dropping = std::thread::spawn(move || {
            for scratch in from {
                drop(scratch);
                done.send(()).expect("the other thread waits");
            }
        });
        for _ in 0..3 * OWN {
            to.send(Scratch::take(16 * LINES)).expect("the other thread listens");
            wait.recv().expect("the other thread answers");
        }
        let of_this_size = shared().iter().filter(|lines| lines.len() == LINES).count();
        assert!(of_this_size <= 1, "{of_this_size} buffers lie about");
        drop(to);
        dropping.join().expect("it ends");
    }

    #[test]
    fn a_buffer_has_what_was_asked_for_and_is_used_again() {
        for len in [0, 1, 16, 17, 1000] {
            let mut scratch = Scratch::take(len);
            assert_eq!(scratch.len(), len);
            assert_eq!(scratch.as_ptr().addr() % 64, 0);
            scratch.fill(7);
        }
        let first = Scratch::take(160_000);
        let at = first.as_ptr();
        drop(first);
        assert_eq!(Scratch::take(159_000).as_ptr(), at);
    }
}
