//! One run per output folder.
//!
//! The lock is the operating system's lock on an open file, which ends with the process however it
//! ends, so a killed run never blocks its successor. The file says who holds it (process, host and
//! the process's start time), for the message that a second run gets; where the file system
//! has no locks, and as a second opinion where it has, that record decides: a holder on this host
//! that still runs (same process number, same start time) is never pushed aside.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{DurableError, Operation, RealFs, create_dirs};

/// The lock's file name in the output folder. It stays there, empty, when no run is on.
pub const RUN_LOCK: &str = ".lowrank.lock";

/// The process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process number.
    pub pid: u32,
    /// The name of its host, empty if unknown.
    pub host: String,
    /// When it started, in clock ticks since the host did (field 22 of `/proc/<pid>/stat`); tells
    /// it from a later process with the same number. 0 if unknown.
    pub start_time: u64,
}

/// Why a run may not have the output folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum LockError {
    #[error(
        "`{}` is in use by process {} on host `{}`; \
         wait for it, stop it, or choose another `output_dir`",
        output_dir.display(), holder.pid, holder.host
    )]
    Held { output_dir: PathBuf, holder: Holder },
    #[error(
        "`{}` is in use by a process that has not yet said which one it is; \
         try again, or choose another `output_dir`",
        output_dir.display()
    )]
    HeldByUnknown { output_dir: PathBuf },
    #[error(
        "`{}` may be in use by process {} on host `{}`, which cannot be asked from here; \
         if that run has ended, remove `{RUN_LOCK}` in that folder",
        output_dir.display(), holder.pid, holder.host
    )]
    HeldElsewhere { output_dir: PathBuf, holder: Holder },
    #[error(transparent)]
    Io(#[from] DurableError),
}

/// The right to write to an output folder, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// Takes the lock on `output_dir`, which is made if need be.
    ///
    /// # Errors
    /// [`LockError::Held`] with the process that holds it, if there is one.
    pub fn acquire(output_dir: &Path) -> Result<Self, LockError> {
        create_dirs(&RealFs, output_dir)?;
        let path = output_dir.join(RUN_LOCK);
        let io_error = |operation| {
            let path = path.clone();
            move |source| DurableError { operation, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error(Operation::Create))?;
        let locked = match file.try_lock() {
            Ok(()) => Locked::Mine,
            Err(TryLockError::WouldBlock) => Locked::Others,
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Locked::NotHere
            }
            Err(TryLockError::Error(error)) => {
                return Err(io_error(Operation::Create)(error).into());
            }
        };
        let record = read_record(&mut file).map_err(io_error(Operation::Read))?;
        decide(locked, record, output_dir)?;
        write_record(&mut file).map_err(io_error(Operation::Write))?;
        Ok(Self { file })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // The record of a holder that has ended is recognised as such, so a failure does no harm.
        // The file isn't removed: another run may have it open and be about to lock it.
        let _ = self.file.set_len(0);
        // Said outright: a process that is just being started by another thread has the file open
        // as well, until it becomes the other program, and would keep the lock that long.
        let _ = self.file.unlock();
    }
}

/// What the operating system says.
enum Locked {
    Mine,
    Others,
    NotHere,
}

fn decide(locked: Locked, record: Option<Holder>, output_dir: &Path) -> Result<(), LockError> {
    let output_dir = output_dir.to_owned();
    let Some(holder) = record else {
        return match locked {
            Locked::Others => Err(LockError::HeldByUnknown { output_dir }),
            Locked::Mine | Locked::NotHere => Ok(()),
        };
    };
    let is_here = holder.host == host_name();
    match locked {
        Locked::Others => Err(LockError::Held { output_dir, holder }),
        _ if is_here && holder.still_runs() => Err(LockError::Held { output_dir, holder }),
        Locked::NotHere if !is_here => Err(LockError::HeldElsewhere { output_dir, holder }),
        Locked::Mine | Locked::NotHere => Ok(()),
    }
}

impl Holder {
    fn this_process() -> Self {
        let pid = std::process::id();
        Self { pid, host: host_name(), start_time: start_time(pid).unwrap_or(0) }
    }

    fn still_runs(&self) -> bool {
        start_time(self.pid).is_some_and(|start_time| start_time == self.start_time)
    }
}

/// The record in the file; `None` if it is empty or was cut off while it was being written.
fn read_record(file: &mut File) -> io::Result<Option<Holder>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn write_record(file: &mut File) -> io::Result<()> {
    let record = serde_json::to_vec(&Holder::this_process())?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&record)?;
    file.sync_all()
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}

/// When the process `pid` started; `None` if there is none, it has ended without its parent's
/// notice (a zombie holds no files), or there is no `/proc`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, may hold spaces, brackets and bytes that aren't text;
    // what follows its last bracket begins with field 3.
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(after_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(22 - 4)?.parse().ok()
}
