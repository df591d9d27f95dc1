//! One run per output folder, and no lock that outlives its process.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{env, fs, thread};

use lowrank_train::checkpoint::{Holder, LockError, RUN_LOCK, RunLock};
use tempfile::TempDir;

const HOLD: &str = "LOWRANK_TEST_HOLD_LOCK_IN";

/// Not a test of its own: another process runs it to hold a lock.
#[test]
fn hold_the_lock() {
    let Some(folder) = env::var_os(HOLD) else { return };
    let _lock = RunLock::acquire(Path::new(&folder)).unwrap();
    println!("\nholding");
    loop {
        thread::park();
    }
}

fn process_that_holds(folder: &Path) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["hold_the_lock", "--exact", "--nocapture"])
        .env(HOLD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "holding"));
    child
}

fn this_process() -> Holder {
    let folder = TempDir::new().unwrap();
    let _lock = RunLock::acquire(folder.path()).unwrap();
    serde_json::from_slice(&fs::read(folder.path().join(RUN_LOCK)).unwrap()).unwrap()
}

fn leave_record(folder: &Path, holder: &Holder) {
    fs::write(folder.join(RUN_LOCK), serde_json::to_vec(holder).unwrap()).unwrap();
}

#[test]
fn a_second_run_is_told_which_process_has_the_folder() {
    let folder = TempDir::new().unwrap();
    let mut child = process_that_holds(folder.path());
    let error = RunLock::acquire(folder.path()).unwrap_err();
    let LockError::Held { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, child.id());
    assert!(error.to_string().contains(&format!("in use by process {} on host", child.id())));
    child.kill().unwrap();
    // Not waited for yet: the killed process may still be listed, and must not count.
    let taken = (0..500).any(|_| {
        thread::sleep(std::time::Duration::from_millis(10));
        RunLock::acquire(folder.path()).is_ok()
    });
    child.wait().unwrap();
    assert!(taken, "the lock of a killed run must not hold");
}

#[test]
fn a_lock_ends_when_it_is_dropped() {
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("new/folder");
    let lock = RunLock::acquire(&inner).unwrap();
    assert!(matches!(RunLock::acquire(&inner), Err(LockError::Held { .. })));
    drop(lock);
    assert_eq!(fs::read(inner.join(RUN_LOCK)).unwrap(), b"");
    RunLock::acquire(&inner).unwrap();
}

#[test]
fn records_of_processes_that_ended_are_stale() {
    let running = this_process();
    let records = [
        Holder { start_time: running.start_time + 1, ..running.clone() },
        Holder { pid: u32::MAX, ..running.clone() },
        Holder { host: "a-host-that-died".to_owned(), ..running.clone() },
    ];
    for record in records {
        let folder = TempDir::new().unwrap();
        leave_record(folder.path(), &record);
        RunLock::acquire(folder.path()).unwrap();
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(RUN_LOCK), "{\"pid\": 1").unwrap();
    RunLock::acquire(folder.path()).unwrap();
}

#[test]
fn a_running_process_is_believed_even_without_the_systems_lock() {
    let folder = TempDir::new().unwrap();
    let running = this_process();
    assert_eq!(running.pid, std::process::id());
    assert!(running.start_time > 0 && !running.host.is_empty());
    leave_record(folder.path(), &running);
    assert!(matches!(RunLock::acquire(folder.path()), Err(LockError::Held { .. })));
}
