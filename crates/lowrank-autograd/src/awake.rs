//! Workers that wait for their next task awake.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rayon::Yield;

/// Looks for a task that a worker takes at a time.
const LOOKS: usize = 32;
/// Looks in vain after which it lets other programs have its core between two of them.
const EAGER: u32 = 1 << 12;
/// Turns of a spin loop between two looks: some hundred nanoseconds.
const PAUSE: u32 = 16;

/// While it lives, the other workers of this thread's pool look for tasks instead of falling asleep
/// between them: a step is a thousand short parallel loops, and waking a thread takes about as long
/// as one of them. Nothing happens where this thread is no worker.
#[derive(Debug)]
pub struct Awake(Arc<AtomicBool>);

impl Awake {
    /// From now on.
    pub fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        if let Some(own) = rayon::current_thread_index() {
            let over = Arc::clone(&over);
            rayon::spawn_broadcast(move |worker| {
                if worker.index() != own {
                    look_for_tasks(Arc::clone(&over), 0);
                }
            });
        }
        Self(over)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks for tasks, `in_vain` times so far, for a while. The worker may have come here from a task that
/// waits for another one, and that goes on only when this returns: what is left is a task of its own.
fn look_for_tasks(over: Arc<AtomicBool>, mut in_vain: u32) {
    for _ in 0..LOOKS {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let found = rayon::yield_now() == Some(Yield::Executed);
        in_vain = if found { 0 } else { in_vain.saturating_add(1) };
        match in_vain {
            0 => {}
            1..EAGER => (0..PAUSE).for_each(|_| std::hint::spin_loop()),
            _ => std::thread::yield_now(),
        }
    }
    rayon::spawn(move || look_for_tasks(over, in_vain));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn tasks_are_done_while_workers_are_awake_and_after() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
        let sum = || (0..10_000_u64).into_par_iter().map(|i| i % 7).sum::<u64>();
        let expected = (0..10_000_u64).map(|i| i % 7).sum::<u64>();
        for _ in 0..50 {
            pool.install(|| {
                let awake = Awake::begin();
                let nested = Awake::begin();
                assert_eq!(sum(), expected);
                drop(awake);
                assert_eq!(sum(), expected);
                drop(nested);
                assert_eq!(sum(), expected);
            });
        }
        let _outside = Awake::begin();
        assert_eq!(sum(), expected);
    }

    /// Waits, at most some seconds, and does other tasks meanwhile if it may.
    fn wait(flag: &AtomicBool, works: bool) {
        let start = Instant::now();
        while !flag.load(Ordering::SeqCst) {
            assert!(start.elapsed() < Duration::from_secs(20), "it never happens");
            if works {
                rayon::yield_now();
            }
        }
    }

    #[test]
    fn a_task_that_waits_goes_on_when_what_it_waits_for_is_done() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        let [begun, awake, taken, done] = [const { AtomicBool::new(false) }; 4];
        let (set, short) = (|flag: &AtomicBool| flag.store(true, Ordering::SeqCst), 50);
        let other_half = || {
            set(&taken);
            // The other worker waits, and is told to look for tasks.
            std::thread::sleep(Duration::from_millis(short));
        };
        let waiting = || {
            set(&begun);
            wait(&awake, false);
            rayon::join(|| wait(&taken, false), other_half);
            set(&done);
        };
        let main = || {
            wait(&begun, false);
            let _awake = Awake::begin();
            set(&awake);
            wait(&done, true);
        };
        pool.install(|| rayon::join(main, waiting));
    }
}
