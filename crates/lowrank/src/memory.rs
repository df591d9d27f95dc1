//! How the program deals with the allocator, and what that costs: fresh memory comes in pages that
//! the kernel has to find and zero at the first touch of each, which for a step's tensors takes
//! longer than reading them.
#![expect(unsafe_code, reason = "the C library is called")]

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
    fn memory_that_is_touched_first_faults() {
        let before = page_faults().expect("a count");
        let pages = 1 << 12;
        let fresh = std::hint::black_box(vec![1u8; pages << 12]);
        let after = page_faults().expect("a count");
        assert!(after > before, "{} bytes cost no fault", fresh.len());
    }
}
