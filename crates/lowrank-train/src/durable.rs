//! Files that survive a crash: every write goes to a new file, is synced, and only then takes the
//! place of the old one.
//!
//! [`DurableFs`] names the few operations that durability is made of. Everything that must not be
//! lost is written through it, so that a test can put a recording file system in its place, stop
//! it after any operation, throw away what wasn't synced, and look at what a restart would find
//! (the method of LevelDB's `fault_injection_test.cc`).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What was being done to a file when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Making a folder.
    CreateDir,
    /// Making or emptying a file.
    Create,
    /// Opening a file to add to its end.
    Append,
    /// Writing bytes.
    Write,
    /// Forcing a file or folder to the disk.
    Sync,
    /// Giving a file or folder another name.
    Rename,
    /// Removing a file or folder.
    Remove,
    /// Listing a folder.
    List,
    /// Reading a file.
    Read,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateDir => "create the folder",
            Self::Create => "create",
            Self::Append => "open for appending",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::List => "list",
            Self::Read => "read",
        })
    }
}

/// An operation that the operating system refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`: {source}{}", path.display(), remedy(source))]
pub struct DurableError {
    /// What was being done.
    pub operation: Operation,
    /// The file or folder.
    pub path: PathBuf,
    /// The reason that the operating system gave.
    pub source: io::Error,
}

impl DurableError {
    /// The error of `operation` on `path`.
    pub fn new(operation: Operation, path: &Path, source: io::Error) -> Self {
        Self { operation, path: path.to_owned(), source }
    }

    /// Whether the disk or the quota is full.
    pub fn is_storage_full(&self) -> bool {
        is_storage_full(&self.source)
    }

    /// Whether the file or folder doesn't exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

fn is_storage_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space there or lower `save_total_limit`"
        }
        io::ErrorKind::FileTooLarge => "; raise the limit on file sizes (`ulimit -f`)",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; choose an `output_dir` that this user may write to"
        }
        _ => "",
    }
}

/// A file open for writing.
pub trait DurableFile {
    /// Adds `bytes` at the end.
    ///
    /// # Errors
    /// [`DurableError`] with the path; some of the bytes may have been written.
    fn write(&mut self, bytes: &[u8]) -> Result<(), DurableError>;

    /// Returns once everything written so far is on the disk.
    ///
    /// # Errors
    /// [`DurableError`]; the file's contents must then be taken for lost.
    fn sync(&mut self) -> Result<(), DurableError>;
}

/// The operations on files that durability is made of. Every method's error is a
/// [`DurableError`] that carries the operation and the path.
pub trait DurableFs {
    /// Makes the folder `path`, whose parent exists; no error if it is there already.
    fn create_dir(&self, path: &Path) -> Result<(), DurableError>;

    /// Makes the file `path`, or empties it. Its mode follows the umask.
    fn create(&self, path: &Path) -> Result<Box<dyn DurableFile + '_>, DurableError>;

    /// Opens the file `path` to add to its end, and makes it if it isn't there.
    fn append(&self, path: &Path) -> Result<Box<dyn DurableFile + '_>, DurableError>;

    /// Returns once the names in the folder `path` are on the disk.
    fn sync_dir(&self, path: &Path) -> Result<(), DurableError>;

    /// Gives `from` the name `to`, in one step, in place of a file that has that name.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DurableError>;

    /// Removes a file, or a folder with all that is in it; no error if there is none. A link is
    /// removed, not followed.
    fn remove(&self, path: &Path) -> Result<(), DurableError>;

    /// The names in the folder `path`, sorted.
    fn list(&self, path: &Path) -> Result<Vec<OsString>, DurableError>;

    /// The bytes of the file `path`.
    fn read(&self, path: &Path) -> Result<Vec<u8>, DurableError>;

    /// Whether there is something named `path`; a link to nothing counts.
    fn exists(&self, path: &Path) -> Result<bool, DurableError>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

struct RealFile {
    path: PathBuf,
    file: File,
}

impl DurableFile for RealFile {
    fn write(&mut self, bytes: &[u8]) -> Result<(), DurableError> {
        self.file.write_all(bytes).map_err(at(Operation::Write, &self.path))
    }

    fn sync(&mut self) -> Result<(), DurableError> {
        self.file.sync_all().map_err(at(Operation::Sync, &self.path))
    }
}

fn at(operation: Operation, path: &Path) -> impl FnOnce(io::Error) -> DurableError {
    move |source| DurableError::new(operation, path, source)
}

impl DurableFs for RealFs {
    fn create_dir(&self, path: &Path) -> Result<(), DurableError> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result.map_err(at(Operation::CreateDir, path)),
        }
    }

    fn create(&self, path: &Path) -> Result<Box<dyn DurableFile + '_>, DurableError> {
        let file = File::create(path).map_err(at(Operation::Create, path))?;
        Ok(Box::new(RealFile { path: path.to_owned(), file }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn DurableFile + '_>, DurableError> {
        let open = OpenOptions::new().append(true).create(true).open(path);
        let file = open.map_err(at(Operation::Append, path))?;
        Ok(Box::new(RealFile { path: path.to_owned(), file }))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DurableError> {
        File::open(path).and_then(|dir| dir.sync_all()).map_err(at(Operation::Sync, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DurableError> {
        fs::rename(from, to).map_err(at(Operation::Rename, from))
    }

    fn remove(&self, path: &Path) -> Result<(), DurableError> {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(at(Operation::Remove, path)),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<OsString>, DurableError> {
        let entries = fs::read_dir(path).map_err(at(Operation::List, path))?;
        let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
        let mut names = names.map_err(at(Operation::List, path))?;
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, DurableError> {
        fs::read(path).map_err(at(Operation::Read, path))
    }

    fn exists(&self, path: &Path) -> Result<bool, DurableError> {
        match fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DurableError::new(Operation::Read, path, error)),
        }
    }
}

/// Makes the folder `path` and the folders above it that are missing, each of them durable.
///
/// # Errors
/// [`DurableError`] with the folder that couldn't be made.
pub fn create_dirs(fs: &dyn DurableFs, path: &Path) -> Result<(), DurableError> {
    if path.as_os_str().is_empty() || fs.exists(path)? {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dirs(fs, parent)?;
    fs.create_dir(path)?;
    fs.sync_dir(parent)
}

/// Makes `bytes` the contents of the file `path`. Whatever happens on the way, the file then holds
/// either all of its old contents or all of the new ones.
///
/// # Errors
/// [`DurableError`]; the file holds its old contents, unless only the last sync failed.
pub fn write_replace(fs: &dyn DurableFs, path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    let temporary = temporary_name(path);
    let written = write_synced(fs, &temporary, bytes).and_then(|()| fs.rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report. A temporary file that can't be removed either
        // does no harm: the next write of this file begins by emptying it.
        let _ = fs.remove(&temporary);
        return Err(error);
    }
    fs.sync_dir(parent_of(path))
}

/// Makes the file `path` with `bytes` in it and syncs the file, though not its folder.
///
/// # Errors
/// [`DurableError`]; the file may then hold a part of the bytes.
pub fn write_synced(fs: &dyn DurableFs, path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    let mut file = fs.create(path)?;
    file.write(bytes)?;
    file.sync()
}

/// The folder that `path` is in; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name beside `path` for contents that aren't whole yet: the same folder, hence the same file
/// system, hence a rename in one step.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new("file")));
    name.push(".tmp");
    path.with_file_name(name)
}
