//! How the program deals with the allocator, and what that costs: fresh memory comes in pages that
//! the kernel has to find and zero at the first touch of each, which for a step's tensors takes
//! longer than reading them.
#![expect(unsafe_code, reason = "the C library is called, and memory is handed out")]

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes of a cache line.
const LINE: usize = 64;
/// From so many bytes on, memory begins at a cache line.
const LARGE: usize = 1 << 12;

/// The system's allocator, whose large pieces begin at cache lines: a row of a tensor that is read
/// in vectors, or in tiles as it lies, would otherwise take two lines for each. (Asking the system
/// for such memory makes glibc cut a larger piece in three, which don't fit again when they are
/// freed.)
pub(crate) struct Lines;

/// What is asked of the system for large pieces: room for where the system's own begins.
fn roomy(layout: Layout) -> Option<Layout> {
    let large = layout.size() >= LARGE && layout.align() <= LINE;
    let size = layout.size().checked_add(LINE).filter(|_| large)?;
    Layout::from_size_align(size, size_of::<usize>()).ok()
}

/// The first cache line after `base`, in front of which `base` is noted.
///
/// # Safety
/// The piece at `base` has room for [`LINE`] bytes more than what is asked for, or `base` is null.
unsafe fn next_line(base: *mut u8) -> *mut u8 {
    if base.is_null() {
        return base;
    }
    let at = base.wrapping_add(LINE - base.addr() % LINE);
    // SAFETY: `base` is aligned for a pointer, so that at least one fits before the next line.
    unsafe { at.cast::<*mut u8>().sub(1).write(base) };
    at
}

// SAFETY: small pieces are the system's; a large one lies within a piece of the system's, which is
// found again by the pointer in front of it.
unsafe impl GlobalAlloc for Lines {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise; `roomy` asks for a line more than what is needed.
        unsafe {
            match roomy(layout) {
                Some(roomy) => next_line(System.alloc(roomy)),
                None => System.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            match roomy(layout) {
                Some(roomy) => next_line(System.alloc_zeroed(roomy)),
                None => System.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise; in front of a large piece stands where the system's begins.
        unsafe {
            match roomy(layout) {
                Some(roomy) => System.dealloc(at.cast::<*mut u8>().sub(1).read(), roomy),
                None => System.dealloc(at, layout),
            }
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; what is large, before or after, is copied.
        unsafe {
            let new = Layout::from_size_align_unchecked(new_size, layout.align());
            if roomy(layout).or_else(|| roomy(new)).is_none() {
                return System.realloc(at, layout, new_size);
            }
            let to = self.alloc(new);
            if !to.is_null() {
                std::ptr::copy_nonoverlapping(at, to, layout.size().min(new_size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

/// Keeps freed memory for the next allocation instead of giving it back to the kernel: a step
/// allocates what the step before has freed. Without effect where the C library isn't glibc.
pub(crate) fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [
        // Large tensors aren't mapped one by one; their memory would go back when they are freed.
        (libc::M_MMAP_MAX, 0),
        // The heap never shrinks, and grows in pieces that are worth a call.
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        (libc::M_TOP_PAD, 64 << 20),
        // What one thread frees another may have: all of it lies in one heap.
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: `mallopt` takes two integers and checks them; a refusal leaves things as they are.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// How many pages of fresh memory the process has touched so far; `None` where that isn't known.
pub(crate) fn page_faults() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `getrusage` writes one `rusage` to the place it is given, which is one.
    let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: zeros are a valid `rusage`, and so is what the call has written.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_minflt).ok().filter(|_| status == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_memory_begins_at_a_cache_line_and_keeps_what_it_holds() {
        for len in [LARGE, LARGE + 1, 100_000] {
            let mut bytes = vec![7_u8; len];
            assert_eq!(bytes.as_ptr().addr() % LINE, 0, "{len} bytes");
            bytes.resize(3 * len, 9);
            assert_eq!(bytes.as_ptr().addr() % LINE, 0, "{len} bytes, grown");
            assert!(bytes[..len].iter().all(|b| *b == 7) && bytes[len..].iter().all(|b| *b == 9));
            bytes.truncate(10);
            bytes.shrink_to_fit();
            bytes.resize(len, 7);
            assert_eq!(bytes, vec![7; len]);
            assert_eq!(vec![0_u8; len].iter().max(), Some(&0));
        }
    }

    #[test]
    fn what_wants_more_than_a_cache_line_gets_it() {
        #[derive(Clone)]
        #[repr(align(4096))]
        struct Page(u8);
        let pages = vec![Page(1); 3];
        assert!(pages.as_ptr().addr().is_multiple_of(4096) && pages.iter().all(|page| page.0 == 1));
    }

    #[test]
    fn memory_that_is_touched_first_faults() {
        let before = page_faults().expect("a count");
        let pages = 1 << 12;
        let fresh = std::hint::black_box(vec![1u8; pages << 12]);
        let after = page_faults().expect("a count");
        assert!(after > before, "{} bytes cost no fault", fresh.len());
    }
}
