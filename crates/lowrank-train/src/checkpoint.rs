//! Checkpoints: folders `checkpoint-N` that are there whole or not at all.
//!
//! A checkpoint is written to a hidden folder, every file is synced, a manifest with the size and
//! hash of each file comes last, and a rename makes it a checkpoint. Whoever looks for one counts
//! only folders whose manifest agrees with what is in them, so a copy that was cut short or a bit
//! that flipped is found, named and passed over. Nothing old is removed before the new is durable.
//!
//! What a checkpoint holds is the caller's business: here it is bytes by name.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::durable::{DurableError, DurableFs, create_dirs, write_synced};

mod manifest;
mod recovery;
mod run_lock;

pub use manifest::{Damage, FORMAT_VERSION, MANIFEST};
pub use recovery::{BrokenCheckpoint, Pruned, Search, find_newest, prune, remove_leftovers};
pub use run_lock::{Holder, LockError, RUN_LOCK, RunLock};

use manifest::{Manifest, is_plain_name};

/// Why a checkpoint could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum CheckpointError {
    #[error(transparent)]
    Io(#[from] DurableError),
    #[error("`{name}` cannot be a file of a checkpoint: {reason}")]
    FileName { name: String, reason: &'static str },
    #[error("`{}` is not a whole checkpoint: {damage}", path.display())]
    Broken { path: PathBuf, damage: Damage },
}

impl CheckpointError {
    /// Whether there was no room left, so that a later try may succeed.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::Io(error) if error.is_storage_full())
    }
}

/// A checkpoint whose files have been read and found to agree with its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The number of optimizer steps that had been made.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// The bytes of each file, in the order they were saved.
    pub files: IndexMap<String, Vec<u8>>,
}

/// Writes the checkpoint of `step` to `output_dir` and returns its folder, which is on the disk
/// by then. A checkpoint of the same step is replaced; until the new one is durable the old one
/// can still be recovered.
///
/// # Errors
/// [`CheckpointError::FileName`] if a name is not a plain one or occurs twice, otherwise
/// [`CheckpointError::Io`]. After either, what was in `output_dir` before is still there, nothing
/// half-written is, and saving may be tried again.
pub fn save(
    fs: &dyn DurableFs,
    output_dir: &Path,
    step: u64,
    files: &[(&str, &[u8])],
) -> Result<PathBuf, CheckpointError> {
    check_names(files)?;
    create_dirs(fs, output_dir)?;
    let unfinished = unfinished_path(output_dir, step);
    let published = write_files(fs, &unfinished, step, files)
        .and_then(|()| publish(fs, &unfinished, output_dir, step));
    if let Err(error) = published {
        // The first error is the one to report; what can't be removed now goes at the next start.
        let _ = fs.remove(&unfinished);
        return Err(error.into());
    }
    Ok(checkpoint_path(output_dir, step))
}

/// Reads the checkpoint in the folder `path`, which may have been given any name; if it is called
/// `checkpoint-N`, it must be that of step N.
///
/// # Errors
/// [`CheckpointError::Broken`] with the file and what is wrong with it.
pub fn load(fs: &dyn DurableFs, path: &Path) -> Result<Checkpoint, CheckpointError> {
    read(fs, path).map_err(|damage| CheckpointError::Broken { path: path.to_owned(), damage })
}

fn read(fs: &dyn DurableFs, path: &Path) -> Result<Checkpoint, Damage> {
    let mut files = IndexMap::new();
    let step = manifest::verify(fs, path, |name, bytes| {
        files.insert(name.to_owned(), bytes);
    })?;
    Ok(Checkpoint { step, path: path.to_owned(), files })
}

/// The folder of the checkpoint of `step`.
pub fn checkpoint_path(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!("checkpoint-{step}"))
}

/// The step in a name `checkpoint-N`; `None` if the name is another one.
pub fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

/// Ends the hidden name of a checkpoint that is being written.
const UNFINISHED: &str = ".tmp";

/// Ends the hidden name of a checkpoint that is being replaced or removed.
const OUTGOING: &str = ".old";

/// Where a checkpoint is while it isn't whole.
fn unfinished_path(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!(".checkpoint-{step}{UNFINISHED}"))
}

/// Where a checkpoint waits that is being replaced or removed.
fn outgoing_path(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!(".checkpoint-{step}{OUTGOING}"))
}

fn check_names(files: &[(&str, &[u8])]) -> Result<(), CheckpointError> {
    for (place, (name, _)) in files.iter().enumerate() {
        let reason = if !is_plain_name(name) {
            "it must be a plain file name without a folder"
        } else if *name == MANIFEST {
            "the manifest has that name"
        } else if files.iter().take(place).any(|(earlier, _)| earlier == name) {
            "it occurs twice"
        } else {
            continue;
        };
        return Err(CheckpointError::FileName { name: (*name).to_owned(), reason });
    }
    Ok(())
}

fn write_files(
    fs: &dyn DurableFs,
    unfinished: &Path,
    step: u64,
    files: &[(&str, &[u8])],
) -> Result<(), DurableError> {
    fs.remove(unfinished)?; // one that an earlier save failed to clear away
    fs.create_dir(unfinished)?;
    for (name, bytes) in files {
        write_synced(fs, &unfinished.join(name), bytes)?;
    }
    write_synced(fs, &unfinished.join(MANIFEST), &Manifest::of(step, files).to_bytes())?;
    fs.sync_dir(unfinished)
}

/// Gives the finished folder its name. A folder can't be renamed onto another that isn't empty, so
/// a checkpoint of the same step steps aside first; if the run dies in between, the next start
/// puts it back ([`remove_leftovers`]).
fn publish(
    fs: &dyn DurableFs,
    unfinished: &Path,
    output_dir: &Path,
    step: u64,
) -> Result<(), DurableError> {
    let target = checkpoint_path(output_dir, step);
    let outgoing = outgoing_path(output_dir, step);
    let replaces = fs.exists(&target)?;
    if replaces {
        fs.remove(&outgoing)?;
        fs.rename(&target, &outgoing)?;
    }
    if let Err(error) = fs.rename(unfinished, &target) {
        if replaces {
            // As above: the first error counts, and the next start would do this too.
            let _ = fs.rename(&outgoing, &target);
        }
        return Err(error);
    }
    fs.sync_dir(output_dir)?;
    if replaces && let Err(error) = fs.remove(&outgoing) {
        tracing::warn!(%error, "the replaced checkpoint stays until the next start");
    }
    Ok(())
}
