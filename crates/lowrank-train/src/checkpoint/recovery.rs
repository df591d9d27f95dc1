//! What a start finds: the newest whole checkpoint, the broken ones, and what a crash left over.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::manifest::verify;
use super::{
    Checkpoint, Damage, OUTGOING, UNFINISHED, checkpoint_path, outgoing_path, read, step_of,
};
use crate::durable::{DurableError, DurableFs};

/// A folder that is called a checkpoint and isn't a whole one.
#[derive(Debug)]
pub struct BrokenCheckpoint {
    /// The folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub damage: Damage,
}

/// What [`find_newest`] found.
#[derive(Debug)]
pub struct Search {
    /// The whole checkpoint with the highest step.
    pub newest: Option<Checkpoint>,
    /// The broken ones with a higher step, highest first; to be reported to the user.
    pub broken: Vec<BrokenCheckpoint>,
}

/// What [`prune`] did.
#[derive(Debug)]
pub struct Pruned {
    /// The folders that were removed.
    pub removed: Vec<PathBuf>,
    /// Broken checkpoints: neither counted nor removed, as they may be another program's.
    pub broken: Vec<BrokenCheckpoint>,
}

/// Looks in `output_dir` for the whole checkpoint with the highest step (as a number: 10000 comes
/// after 9000). A folder that doesn't exist holds none.
///
/// # Errors
/// [`DurableError`] if `output_dir` can't be listed. A broken checkpoint is no error.
pub fn find_newest(fs: &dyn DurableFs, output_dir: &Path) -> Result<Search, DurableError> {
    let mut broken = Vec::new();
    for step in steps_downwards(fs, output_dir)? {
        let path = checkpoint_path(output_dir, step);
        match read(fs, &path) {
            Ok(newest) => return Ok(Search { newest: Some(newest), broken }),
            Err(damage) => broken.push(BrokenCheckpoint { path, damage }),
        }
    }
    Ok(Search { newest: None, broken })
}

/// Removes all but the newest `keep` whole checkpoints. Call it after a save has returned.
///
/// # Errors
/// [`DurableError`]; the newest `keep` are still there.
pub fn prune(
    fs: &dyn DurableFs,
    output_dir: &Path,
    keep: NonZeroUsize,
) -> Result<Pruned, DurableError> {
    let (mut kept, mut pruned) = (0, Pruned { removed: Vec::new(), broken: Vec::new() });
    for step in steps_downwards(fs, output_dir)? {
        let path = checkpoint_path(output_dir, step);
        match verify(fs, &path, |_, _| ()) {
            Ok(_) if kept < keep.get() => kept += 1,
            Ok(_) => {
                remove_whole(fs, output_dir, step)?;
                pruned.removed.push(path);
            }
            Err(damage) => pruned.broken.push(BrokenCheckpoint { path, damage }),
        }
    }
    Ok(pruned)
}

/// Clears away what a crash left: half-written folders go, and a checkpoint that was stepping
/// aside for another one gets its name back if that other one never came. Returns the folders
/// that went. Only the holder of the [`RunLock`](super::RunLock) may call it.
///
/// # Errors
/// [`DurableError`] with the folder that couldn't be removed.
pub fn remove_leftovers(
    fs: &dyn DurableFs,
    output_dir: &Path,
) -> Result<Vec<PathBuf>, DurableError> {
    let mut removed = Vec::new();
    for name in list_or_nothing(fs, output_dir)? {
        let Some((step, leftover)) = leftover(&name) else { continue };
        let (path, target) = (output_dir.join(&name), checkpoint_path(output_dir, step));
        let outgoing = leftover == Leftover::Outgoing;
        if outgoing && !is_whole(fs, &target) && is_whole(fs, &path) {
            fs.remove(&target)?;
            fs.rename(&path, &target)?;
            fs.sync_dir(output_dir)?;
        } else {
            fs.remove(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Removes a whole checkpoint so that no crash leaves half of it under its name.
fn remove_whole(fs: &dyn DurableFs, output_dir: &Path, step: u64) -> Result<(), DurableError> {
    let outgoing = outgoing_path(output_dir, step);
    fs.remove(&outgoing)?;
    fs.rename(&checkpoint_path(output_dir, step), &outgoing)?;
    fs.sync_dir(output_dir)?;
    fs.remove(&outgoing)
}

fn is_whole(fs: &dyn DurableFs, path: &Path) -> bool {
    verify(fs, path, |_, _| ()).is_ok()
}

#[derive(PartialEq)]
enum Leftover {
    /// Was being written.
    Unfinished,
    /// Was being replaced or removed.
    Outgoing,
}

/// Whose leftover `name` is, if it is one.
fn leftover(name: &str) -> Option<(u64, Leftover)> {
    let name = name.strip_prefix('.')?;
    let (checkpoint, leftover) = match name.strip_suffix(UNFINISHED) {
        Some(checkpoint) => (checkpoint, Leftover::Unfinished),
        None => (name.strip_suffix(OUTGOING)?, Leftover::Outgoing),
    };
    Some((step_of(checkpoint)?, leftover))
}

fn steps_downwards(fs: &dyn DurableFs, output_dir: &Path) -> Result<Vec<u64>, DurableError> {
    let names = list_or_nothing(fs, output_dir)?;
    let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(name)).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// The names in a folder that are text, as all of ours are.
fn list_or_nothing(fs: &dyn DurableFs, folder: &Path) -> Result<Vec<String>, DurableError> {
    match fs.list(folder) {
        Ok(names) => Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect()),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
