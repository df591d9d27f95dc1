//! A power failure at any operation leaves the old or the new state, and nothing else; a bit that
//! flips in a checkpoint is noticed.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "durable_fault/fault_fs.rs"]
mod fault_fs;

use std::num::NonZeroUsize;
use std::path::Path;

use fault_fs::{FaultFs, Loss};
use lowrank_train::checkpoint::{self, CheckpointError, find_newest, prune, remove_leftovers};
use lowrank_train::durable::{DurableError, DurableFs, write_replace};

const OUT: &str = "runs/one";
const RANDOM_LOSSES: u64 = 40;

fn out() -> &'static Path {
    Path::new(OUT)
}

type Contents = Vec<(&'static str, Vec<u8>)>;

/// Files of several writes each, and one empty one.
fn contents(mark: u8) -> Contents {
    let bytes = |len: usize| (0..len).map(|i| (i as u8).wrapping_mul(31) ^ mark).collect();
    vec![("adapter_model.safetensors", bytes(450)), ("state.json", bytes(90)), ("empty", bytes(0))]
}

fn save(fs: &FaultFs, step: u64, contents: &Contents) -> Result<(), CheckpointError> {
    let files: Vec<_> = contents.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    checkpoint::save(fs, out(), step, &files).map(drop)
}

/// A file system on which `steps` were saved and nothing else survived.
fn saved(steps: &[u64]) -> FaultFs {
    let fs = FaultFs::new();
    for &step in steps {
        save(&fs, step, &contents(step as u8)).unwrap();
    }
    fs.crash(Loss::Everything)
}

fn losses() -> impl Iterator<Item = Loss> {
    [Loss::Nothing, Loss::Everything].into_iter().chain((0..RANDOM_LOSSES).map(Loss::Random))
}

/// Starts again after a crash; what is found must be whole and one of `allowed`, and nothing else
/// may lie about.
fn restart(fs: &FaultFs, allowed: &[Option<(u64, Contents)>], context: &str) {
    remove_leftovers(fs, out()).unwrap();
    let search = find_newest(fs, out()).unwrap();
    assert!(search.broken.is_empty(), "{context}: {:?}", search.broken);
    let found = search.newest.map(|newest| (newest.step, newest.files));
    let same = |allowed: &Option<(u64, Contents)>| match (allowed, &found) {
        (None, None) => true,
        (Some((step, contents)), Some((found_step, files))) => {
            step == found_step
                && contents.len() == files.len()
                && contents.iter().all(|(name, bytes)| files.get(*name) == Some(bytes))
        }
        _ => false,
    };
    let step = found.as_ref().map(|(step, _)| *step);
    assert!(allowed.iter().any(same), "{context}: found the checkpoint of step {step:?}");
    for name in fs.list(out()).unwrap_or_default() {
        assert!(name.to_str().unwrap().starts_with("checkpoint-"), "{context}: left {name:?}");
        checkpoint::load(fs, &out().join(name)).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
    save(fs, 1_000_000, &contents(1)).unwrap();
    assert_eq!(find_newest(fs, out()).unwrap().newest.unwrap().step, 1_000_000, "{context}");
}

/// Runs `action` with power for every number of operations, and restarts after every loss.
/// `before` and `after` are what a restart may find if the action wasn't finished, if it was.
fn enumerate(
    start: &FaultFs,
    action: impl Fn(&FaultFs) -> bool,
    before: &[Option<(u64, Contents)>],
    after: &[Option<(u64, Contents)>],
) {
    let whole = start.with_power_for(usize::MAX);
    assert!(action(&whole), "the action must succeed without a crash");
    let operations = whole.operations();
    assert!(operations > 2, "{:?}", whole.log.borrow());
    for power in 0..=operations {
        let fs = start.with_power_for(power);
        let finished = action(&fs);
        assert!(finished || power < operations);
        for loss in losses() {
            let last = fs.log.borrow().last().cloned().unwrap_or_default();
            let context = format!("{loss:?} after operation {power} of {operations} ({last})");
            restart(&fs.crash(loss), if finished { after } else { before }, &context);
        }
    }
}

#[test]
fn a_first_save_gives_no_checkpoint_or_the_new_one() {
    let new = Some((20, contents(20)));
    enumerate(
        &FaultFs::new(),
        |fs| save(fs, 20, &contents(20)).is_ok(),
        &[None, new.clone()],
        &[new],
    );
}

#[test]
fn a_later_save_gives_the_previous_checkpoint_or_the_new_one() {
    let (old, new) = (Some((9, contents(9))), Some((10, contents(10))));
    enumerate(&saved(&[9]), |fs| save(fs, 10, &contents(10)).is_ok(), &[old, new.clone()], &[new]);
}

#[test]
fn a_save_of_the_same_step_gives_the_old_contents_or_the_new_ones() {
    let (old, new) = (Some((10, contents(10))), Some((10, contents(77))));
    enumerate(&saved(&[10]), |fs| save(fs, 10, &contents(77)).is_ok(), &[old, new.clone()], &[new]);
}

#[test]
fn pruning_to_one_never_loses_the_newest() {
    let newest = Some((30, contents(30)));
    let keep = NonZeroUsize::new(1).unwrap();
    enumerate(
        &saved(&[10, 20, 30]),
        |fs| prune(fs, out(), keep).is_ok(),
        std::slice::from_ref(&newest),
        std::slice::from_ref(&newest),
    );
}

#[test]
fn saving_and_pruning_to_one_always_leaves_a_whole_checkpoint() {
    let (old, new) = (Some((20, contents(20))), Some((30, contents(30))));
    let keep = NonZeroUsize::new(1).unwrap();
    let action =
        |fs: &FaultFs| save(fs, 30, &contents(30)).is_ok() && prune(fs, out(), keep).is_ok();
    enumerate(&saved(&[10, 20]), action, &[old, new.clone()], &[new]);
}

#[test]
fn a_replaced_file_has_its_old_contents_or_its_new_ones() {
    let path = Path::new("log/state.json");
    let start = FaultFs::new();
    start.create_dir(Path::new("log")).unwrap();
    start.sync_dir(Path::new("")).unwrap();
    let (old, new) = (vec![b'o'; 350], vec![b'n'; 250]);
    write_replace(&start, path, &old).unwrap();
    let start = start.crash(Loss::Everything);
    let whole = start.with_power_for(usize::MAX);
    write_replace(&whole, path, &new).unwrap();
    for power in 0..=whole.operations() {
        let fs = start.with_power_for(power);
        let finished = write_replace(&fs, path, &new).is_ok();
        for loss in losses() {
            let found = fs.crash(loss).read(path).unwrap();
            assert!(found == new || (!finished && found == old), "{loss:?} after {power}");
        }
    }
}

/// The double must notice a forgotten sync, or the tests above say nothing.
#[test]
fn a_forgotten_sync_is_noticed() {
    let path = Path::new("state.json");
    let unsafe_replace = |fs: &FaultFs, sync_file: bool, sync_dir: bool| {
        let mut file = fs.create(Path::new("tmp"))?;
        file.write(b"new")?;
        if sync_file {
            file.sync()?;
        }
        fs.rename(Path::new("tmp"), path)?;
        if sync_dir { fs.sync_dir(Path::new("")) } else { Ok::<(), DurableError>(()) }
    };
    let start = FaultFs::new();
    write_replace(&start, path, b"old").unwrap();
    let survivors = |sync_file, sync_dir| {
        let fs = start.with_power_for(usize::MAX);
        unsafe_replace(&fs, sync_file, sync_dir).unwrap();
        fs.crash(Loss::Everything).read(path).unwrap()
    };
    assert_eq!(survivors(true, true), b"new");
    assert_eq!(survivors(false, true), b"", "the contents weren't synced");
    assert_eq!(survivors(true, false), b"old", "the name wasn't synced");
}

#[test]
fn a_disk_that_fills_up_at_any_operation_costs_only_that_save() {
    for old_step in [10, 20] {
        let start = saved(&[old_step]);
        let whole = start.with_power_for(usize::MAX);
        save(&whole, 20, &contents(77)).unwrap();
        for index in 0..whole.operations() {
            let fs = start.with_full_disk_at(index);
            let failed = whole.log.borrow()[index].clone();
            match save(&fs, 20, &contents(77)) {
                Err(CheckpointError::Io(error)) => {
                    assert!(error.is_storage_full() && error.path.starts_with(OUT), "{error}");
                }
                Err(error) => panic!("{error}"),
                // Only clearing away a replaced checkpoint may fail without failing the save.
                Ok(()) => assert!(failed.contains(".checkpoint-20.old"), "{failed}"),
            }
            let names = fs.list(out()).unwrap();
            assert!(names.iter().any(|name| name == &*format!("checkpoint-{old_step}")));
            assert!(!names.iter().any(|name| name == ".checkpoint-20.tmp"), "{failed}");
            remove_leftovers(&fs, out()).unwrap();
            assert!(find_newest(&fs, out()).unwrap().newest.unwrap().step >= old_step);
            save(&fs, 20, &contents(77)).unwrap();
            let newest = find_newest(&fs, out()).unwrap().newest.unwrap();
            assert_eq!((newest.step, &newest.files["empty"]), (20, &Vec::new()));
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let fs = saved(&[10, 20]);
    let folder = out().join("checkpoint-20");
    let write = |file: &str, bytes: &[u8]| {
        fs.create(&folder.join(file)).and_then(|mut open| open.write(bytes)).unwrap();
    };
    for file in ["adapter_model.safetensors", "state.json", checkpoint::MANIFEST] {
        let whole = fs.read(&folder.join(file)).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            write(file, &bytes);
            let search = find_newest(&fs, out()).unwrap();
            assert_eq!(search.newest.unwrap().step, 10, "{file} bit {bit}");
            assert_eq!(search.broken.len(), 1, "{file} bit {bit}");
        }
        write(file, &whole);
    }
    assert_eq!(find_newest(&fs, out()).unwrap().newest.unwrap().step, 20);
}
