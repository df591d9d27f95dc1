//! Workers that wait for their next task awake.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rayon::Yield;

/// Looks for a task after which a worker lets other programs have its core between two looks.
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
                    look_for_tasks(&over);
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

fn look_for_tasks(over: &AtomicBool) {
    let mut looks = 0;
    while !over.load(Ordering::Relaxed) {
        looks = if rayon::yield_now() == Some(Yield::Executed) { 0 } else { looks + 1 };
        match looks {
            0 => {}
            1..EAGER => (0..PAUSE).for_each(|_| std::hint::spin_loop()),
            _ => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
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
}
