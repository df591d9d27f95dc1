//! A file system in memory whose power can fail.
//!
//! It keeps two pictures: what running programs see, and what is on the disk. Bytes reach the
//! disk when their file is synced, names when their folder is. After `operations_left` operations
//! the power is off: every further operation fails and changes nothing. `crash` then gives the
//! file system that the next start would find.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};

use lowrank_train::durable::{DurableError, DurableFile, DurableFs, Operation};

/// A write of more bytes than these is several operations, so that it can be cut short.
const BYTES_PER_OPERATION: usize = 100;

/// What happens to that which was not synced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    Nothing,
    Everything,
    /// Any part of it, in any order, as the seed has it.
    Random(u64),
}

#[derive(Clone)]
enum Node {
    File { seen: Vec<u8>, on_disk: Vec<u8> },
    Dir { seen: Names, on_disk: Names, unsynced: Vec<Change> },
}

type Names = BTreeMap<OsString, usize>;

#[derive(Clone)]
enum Change {
    Add(OsString, usize),
    Remove(OsString),
    Rename(OsString, OsString, usize),
}

impl Change {
    fn apply(self, names: &mut Names) {
        match self {
            Self::Add(name, node) => drop(names.insert(name, node)),
            Self::Remove(name) => drop(names.remove(&name)),
            Self::Rename(from, to, node) => {
                names.remove(&from);
                names.insert(to, node);
            }
        }
    }
}

#[derive(Clone)]
pub(crate) struct FaultFs {
    nodes: RefCell<Vec<Node>>,
    /// Every operation so far, for messages.
    pub(crate) log: RefCell<Vec<String>>,
    operations_left: Cell<usize>,
    full_at: Cell<Option<usize>>,
}

const ROOT: usize = 0;

impl FaultFs {
    pub(crate) fn new() -> Self {
        Self::with_nodes(vec![empty_dir()])
    }

    fn with_nodes(nodes: Vec<Node>) -> Self {
        Self {
            nodes: RefCell::new(nodes),
            log: RefCell::default(),
            operations_left: Cell::new(usize::MAX),
            full_at: Cell::new(None),
        }
    }

    /// The same files, and power for `operations` more.
    pub(crate) fn with_power_for(&self, operations: usize) -> Self {
        let copy = Self::with_nodes(self.nodes.borrow().clone());
        copy.operations_left.set(operations);
        copy
    }

    /// The same files; the operation with number `index` from here fails, as on a full disk.
    pub(crate) fn with_full_disk_at(&self, index: usize) -> Self {
        let copy = Self::with_nodes(self.nodes.borrow().clone());
        copy.full_at.set(Some(index));
        copy
    }

    pub(crate) fn operations(&self) -> usize {
        self.log.borrow().len()
    }

    /// What the next start finds.
    pub(crate) fn crash(&self, loss: Loss) -> Self {
        let mut random = Random(if let Loss::Random(seed) = loss { seed } else { 0 });
        let nodes = self.nodes.borrow();
        Self::with_nodes(nodes.iter().map(|node| survive(node, loss, &mut random)).collect())
    }

    fn operate(&self, operation: Operation, path: &Path) -> Result<(), DurableError> {
        let index = self.operations();
        if self.operations_left.get() <= index {
            return Err(DurableError::new(operation, path, io::Error::other("power failure")));
        }
        self.log.borrow_mut().push(format!("{operation} {}", path.display()));
        if self.full_at.get() == Some(index) {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(DurableError::new(operation, path, full));
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let nodes = self.nodes.borrow();
        let mut at = ROOT;
        for part in path.components() {
            if let Component::Normal(name) = part {
                let Node::Dir { seen, .. } = &nodes[at] else { return None };
                at = *seen.get(name)?;
            }
        }
        Some(at)
    }

    fn found(&self, operation: Operation, path: &Path) -> Result<usize, DurableError> {
        let missing = || DurableError::new(operation, path, io::ErrorKind::NotFound.into());
        self.find(path).ok_or_else(missing)
    }

    fn change(&self, operation: Operation, dir: &Path, change: Change) -> Result<(), DurableError> {
        let dir_node = self.found(operation, dir)?;
        let Node::Dir { seen, unsynced, .. } = &mut self.nodes.borrow_mut()[dir_node] else {
            return Err(DurableError::new(operation, dir, io::ErrorKind::NotADirectory.into()));
        };
        unsynced.push(change.clone());
        change.apply(seen);
        Ok(())
    }

    fn add(&self, operation: Operation, path: &Path, node: Node) -> Result<usize, DurableError> {
        self.nodes.borrow_mut().push(node);
        let index = self.nodes.borrow().len() - 1;
        self.change(operation, parent(path), Change::Add(name(path), index))?;
        Ok(index)
    }
}

fn empty_dir() -> Node {
    Node::Dir { seen: Names::new(), on_disk: Names::new(), unsynced: Vec::new() }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn name(path: &Path) -> OsString {
    path.file_name().unwrap_or(OsStr::new("")).to_owned()
}

fn survive(node: &Node, loss: Loss, random: &mut Random) -> Node {
    match node {
        Node::File { seen, on_disk } => {
            let bytes = match loss {
                Loss::Nothing => seen.clone(),
                Loss::Everything => on_disk.clone(),
                Loss::Random(_) => random.part_of(on_disk, seen),
            };
            Node::File { seen: bytes.clone(), on_disk: bytes }
        }
        Node::Dir { seen, on_disk, unsynced } => {
            let mut names = if matches!(loss, Loss::Nothing) { seen } else { on_disk }.clone();
            if let Loss::Random(_) = loss {
                unsynced.iter().filter(|_| random.below(2) == 0).cloned().for_each(|change| {
                    change.apply(&mut names);
                });
            }
            Node::Dir { seen: names.clone(), on_disk: names, unsynced: Vec::new() }
        }
    }
}

struct OpenFile<'a> {
    fs: &'a FaultFs,
    path: std::path::PathBuf,
    node: usize,
}

impl DurableFile for OpenFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), DurableError> {
        for bytes in bytes.chunks(BYTES_PER_OPERATION) {
            self.fs.operate(Operation::Write, &self.path)?;
            if let Node::File { seen, .. } = &mut self.fs.nodes.borrow_mut()[self.node] {
                seen.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DurableError> {
        self.fs.operate(Operation::Sync, &self.path)?;
        if let Node::File { seen, on_disk } = &mut self.fs.nodes.borrow_mut()[self.node] {
            on_disk.clone_from(seen);
        }
        Ok(())
    }
}

impl DurableFs for FaultFs {
    fn create_dir(&self, path: &Path) -> Result<(), DurableError> {
        self.operate(Operation::CreateDir, path)?;
        match self.find(path) {
            Some(_) => Ok(()),
            None => self.add(Operation::CreateDir, path, empty_dir()).map(drop),
        }
    }

    fn create(&self, path: &Path) -> Result<Box<dyn DurableFile + '_>, DurableError> {
        self.operate(Operation::Create, path)?;
        let node = match self.find(path) {
            Some(node) => node,
            None => {
                let empty = Node::File { seen: Vec::new(), on_disk: Vec::new() };
                self.add(Operation::Create, path, empty)?
            }
        };
        if let Node::File { seen, .. } = &mut self.nodes.borrow_mut()[node] {
            seen.clear();
        }
        Ok(Box::new(OpenFile { fs: self, path: path.to_owned(), node }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn DurableFile + '_>, DurableError> {
        match self.find(path) {
            Some(node) => Ok(Box::new(OpenFile { fs: self, path: path.to_owned(), node })),
            None => self.create(path),
        }
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DurableError> {
        self.operate(Operation::Sync, path)?;
        let node = self.found(Operation::Sync, path)?;
        if let Node::Dir { seen, on_disk, unsynced } = &mut self.nodes.borrow_mut()[node] {
            on_disk.clone_from(seen);
            unsynced.clear();
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DurableError> {
        assert_eq!(parent(from), parent(to), "only renames within a folder are one step");
        self.operate(Operation::Rename, from)?;
        let node = self.found(Operation::Rename, from)?;
        if let Some(target) = self.find(to)
            && let Node::Dir { seen, .. } = &self.nodes.borrow()[target]
            && !seen.is_empty()
        {
            let not_empty = io::ErrorKind::DirectoryNotEmpty.into();
            return Err(DurableError::new(Operation::Rename, from, not_empty));
        }
        self.change(Operation::Rename, parent(from), Change::Rename(name(from), name(to), node))
    }

    fn remove(&self, path: &Path) -> Result<(), DurableError> {
        let Some(node) = self.find(path) else { return Ok(()) };
        let names = match &self.nodes.borrow()[node] {
            Node::Dir { seen, .. } => seen.keys().cloned().collect(),
            Node::File { .. } => Vec::new(),
        };
        for name in names {
            self.remove(&path.join(name))?;
        }
        self.operate(Operation::Remove, path)?;
        self.change(Operation::Remove, parent(path), Change::Remove(name(path)))
    }

    fn list(&self, path: &Path) -> Result<Vec<OsString>, DurableError> {
        let node = self.found(Operation::List, path)?;
        match &self.nodes.borrow()[node] {
            Node::Dir { seen, .. } => Ok(seen.keys().cloned().collect()),
            Node::File { .. } => {
                let not_a_dir = io::ErrorKind::NotADirectory.into();
                Err(DurableError::new(Operation::List, path, not_a_dir))
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, DurableError> {
        let node = self.found(Operation::Read, path)?;
        match &self.nodes.borrow()[node] {
            Node::File { seen, .. } => Ok(seen.clone()),
            Node::Dir { .. } => {
                let is_a_dir = io::ErrorKind::IsADirectory.into();
                Err(DurableError::new(Operation::Read, path, is_a_dir))
            }
        }
    }

    fn exists(&self, path: &Path) -> Result<bool, DurableError> {
        Ok(self.find(path).is_some())
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// The old bytes, or a beginning of the new ones with or without zeros where the rest was to
    /// be: a disk that wrote the length before the contents.
    fn part_of(&mut self, old: &[u8], new: &[u8]) -> Vec<u8> {
        if old == new || self.below(3) == 0 {
            return old.to_vec();
        }
        let mut bytes = new[..self.below(new.len() + 1)].to_vec();
        if self.below(2) == 0 {
            bytes.resize(new.len(), 0);
        }
        bytes
    }
}
