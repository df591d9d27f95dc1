//! Time by operation: an operation opens a [`scope`] at its top and [`backward`] is opened around
//! its backward function. Off by default, at the cost of one load for each scope.
//!
//! Scopes may lie in one another (a recomputed block runs operations in its backward function);
//! each is charged for the time that no inner one has taken. They are opened by the thread that
//! runs the tape, not by the tasks that an operation is cut into.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

static ON: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<BTreeMap<&'static str, Times>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// What scopes that have ended took of the one that is open.
    static INNER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Its forward function.
    pub forward: Measured,
    /// Its backward function.
    pub backward: Measured,
}

/// Calls and the time that they took in all, without that of scopes inside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// How often it ran.
    pub calls: u64,
    /// How long.
    pub time: Duration,
}

/// Measures until it is dropped.
#[derive(Debug)]
#[must_use = "a scope measures until it is dropped"]
pub struct Scope(Option<Open>);

#[derive(Debug)]
struct Open {
    name: &'static str,
    backward: bool,
    begun: Instant,
    /// What the scope around this one had been charged with before.
    outer: Duration,
}

/// Measures from now on, or stops measuring.
pub fn set_enabled(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Measures the forward function of the operation `name`, or any other stretch of a step.
pub fn scope(name: &'static str) -> Scope {
    open(name, false)
}

/// Measures the backward function of the operation `name`.
pub fn backward(name: &'static str) -> Scope {
    open(name, true)
}

fn open(name: &'static str, backward: bool) -> Scope {
    Scope(ON.load(Ordering::Relaxed).then(|| Open {
        name,
        backward,
        begun: Instant::now(),
        outer: INNER.replace(Duration::ZERO),
    }))
}

impl Drop for Scope {
    fn drop(&mut self) {
        let Some(Open { name, backward, begun, outer }) = self.0.take() else { return };
        let whole = begun.elapsed();
        let own = whole.saturating_sub(INNER.replace(outer + whole));
        let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
        let times = times.entry(name).or_default();
        let measured = if backward { &mut times.backward } else { &mut times.forward };
        measured.calls += 1;
        measured.time += own;
    }
}

/// What was measured since it was last taken, by name.
pub fn take() -> BTreeMap<&'static str, Times> {
    std::mem::take(&mut TIMES.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_charged_for_its_own_time_alone() {
        let wait = |ms| std::thread::sleep(Duration::from_millis(ms));
        drop(scope("profile test: off"));
        set_enabled(true);
        {
            let _outer = backward("profile test: outer");
            for _ in 0..2 {
                let _inner = scope("profile test: inner");
                wait(30);
            }
            wait(10);
        }
        set_enabled(false);
        // Other tests' operations may have been measured meanwhile.
        let times = take();
        let [outer, inner] =
            ["outer", "inner"].map(|name| times[&*format!("profile test: {name}")]);
        assert!(!times.contains_key("profile test: off"));
        assert_eq!((outer.forward.calls, outer.backward.calls), (0, 1));
        assert_eq!((inner.forward.calls, inner.backward.calls), (2, 0));
        assert!(inner.forward.time >= Duration::from_millis(60));
        assert!(outer.backward.time >= Duration::from_millis(10));
        assert!(outer.backward.time < inner.forward.time, "{outer:?} holds {inner:?}");
    }
}
