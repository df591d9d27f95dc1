//! Checkpoints on real files: damage is named and never accepted, retention keeps the newest.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use lowrank_train::checkpoint::{
    CheckpointError, Damage, MANIFEST, find_newest, load, prune, remove_leftovers, save,
};
use lowrank_train::durable::{DurableFs, RealFs, write_replace};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

const WEIGHTS: &str = "adapter_model.safetensors";
const STATE: &str = "trainer_state.json";

fn weights(step: u64) -> Vec<u8> {
    (0..300u64).map(|i| (i * 7 + step) as u8).collect()
}

fn save_step(output_dir: &Path, step: u64) -> PathBuf {
    let state = format!("{{\"global_step\": {step}}}");
    let files: [(&str, &[u8]); 2] = [(WEIGHTS, &weights(step)), (STATE, state.as_bytes())];
    save(&RealFs, output_dir, step, &files).unwrap()
}

/// A folder with whole checkpoints of these steps.
fn run_with(steps: &[u64]) -> TempDir {
    let run = TempDir::new().unwrap();
    for step in steps {
        save_step(run.path(), *step);
    }
    run
}

/// Damages checkpoint 20, which must then be refused by name and passed over for 10.
fn is_refused(what: &str, damage: impl FnOnce(&Path)) -> Damage {
    let run = run_with(&[10, 20]);
    let path = run.path().join("checkpoint-20");
    damage(&path);
    let mut search = find_newest(&RealFs, run.path()).unwrap();
    assert_eq!(search.newest.unwrap().step, 10, "{what}");
    assert_eq!(search.broken.len(), 1, "{what}");
    let broken = search.broken.remove(0);
    assert_eq!(broken.path, path, "{what}");
    let refused = load(&RealFs, &path).unwrap_err();
    assert!(matches!(refused, CheckpointError::Broken { .. }), "{what}: {refused}");
    broken.damage
}

#[test]
fn a_saved_checkpoint_is_read_back() {
    let run = run_with(&[5]);
    let found = find_newest(&RealFs, run.path()).unwrap().newest.unwrap();
    assert_eq!((found.step, &found.path), (5, &run.path().join("checkpoint-5")));
    assert_eq!(found.files.keys().collect::<Vec<_>>(), [WEIGHTS, STATE]);
    assert_eq!(found.files[WEIGHTS], weights(5));
    fs::rename(&found.path, run.path().join("best")).unwrap();
    assert_eq!(load(&RealFs, &run.path().join("best")).unwrap().files, found.files);
}

#[test]
fn the_newest_is_the_highest_number() {
    let run = run_with(&[9900, 10_000, 10_100, 9950]);
    assert_eq!(find_newest(&RealFs, run.path()).unwrap().newest.unwrap().step, 10_100);
    fs::create_dir(run.path().join("checkpoint-020000")).unwrap();
    fs::create_dir(run.path().join("checkpoint-best")).unwrap();
    let search = find_newest(&RealFs, run.path()).unwrap();
    assert_eq!(search.newest.unwrap().step, 10_100);
    assert!(search.broken.is_empty());
}

#[test]
fn a_folder_without_checkpoints_has_none() {
    let run = TempDir::new().unwrap();
    let search = find_newest(&RealFs, &run.path().join("missing")).unwrap();
    assert!(search.newest.is_none() && search.broken.is_empty());
    fs::write(run.path().join("file"), "").unwrap();
    let error = find_newest(&RealFs, &run.path().join("file")).unwrap_err();
    assert!(error.to_string().starts_with("cannot list `"), "{error}");
}

#[test]
fn a_flipped_bit_is_named() {
    // `durable_crash.rs` flips every bit; here is what is said of one.
    for (file, what) in [(WEIGHTS, "the contents of `"), (MANIFEST, "`manifest.json` is damaged")] {
        let damage = is_refused(file, |path| {
            let mut bytes = fs::read(path.join(file)).unwrap();
            bytes[60] ^= 0x10;
            fs::write(path.join(file), bytes).unwrap();
        });
        assert!(damage.to_string().starts_with(what), "{damage}");
    }
}

#[test]
fn every_truncation_and_addition_is_noticed() {
    for file in [WEIGHTS, STATE, MANIFEST] {
        let len = fs::read(save_step(run_with(&[]).path(), 20).join(file)).unwrap().len();
        for cut in [0, 1, 7, 8, len / 2, len - 1] {
            is_refused(&format!("{file} cut to {cut}"), |path| {
                let bytes = fs::read(path.join(file)).unwrap();
                fs::write(path.join(file), &bytes[..cut]).unwrap();
            });
        }
        is_refused(&format!("a byte more in {file}"), |path| {
            let mut bytes = fs::read(path.join(file)).unwrap();
            bytes.push(b'\n');
            fs::write(path.join(file), bytes).unwrap();
        });
    }
}

#[test]
fn missing_extra_and_exchanged_files_are_named() {
    let remove = |file: &'static str| move |path: &Path| fs::remove_file(path.join(file)).unwrap();
    let damage = is_refused("no weights", remove(WEIGHTS));
    assert_eq!(damage.to_string(), "`adapter_model.safetensors` is missing");
    assert!(matches!(is_refused("no manifest", remove(MANIFEST)), Damage::NoManifest));
    let damage = is_refused("extra", |path| fs::write(path.join("optimizer.pt"), "").unwrap());
    assert!(damage.to_string().starts_with("`optimizer.pt` is not in its manifest"), "{damage}");
    let damage = is_refused("exchanged", |path| {
        fs::rename(path.join(WEIGHTS), path.join("x")).unwrap();
        fs::rename(path.join(STATE), path.join(WEIGHTS)).unwrap();
        fs::rename(path.join("x"), path.join(STATE)).unwrap();
    });
    assert!(matches!(damage, Damage::Size { .. }), "{damage}");
    let damage = is_refused("step 10 under the name of 20", |path| {
        fs::remove_dir_all(path).unwrap();
        fs::rename(save_step(&path.join("../elsewhere"), 10), path).unwrap();
    });
    assert!(matches!(damage, Damage::Step { found: 10 }), "{damage}");
}

#[test]
fn links_and_folders_in_place_of_files_are_no_trap() {
    let replace = |file: &'static str, with: fn(&Path)| {
        move |path: &Path| {
            fs::remove_file(path.join(file)).unwrap();
            with(&path.join(file));
        }
    };
    for file in [WEIGHTS, MANIFEST] {
        is_refused("loop", replace(file, |path| symlink(path, path).unwrap()));
        is_refused("folder", replace(file, |path| fs::create_dir(path).unwrap()));
    }
    is_refused("a file as checkpoint", |path| {
        fs::remove_dir_all(path).unwrap();
        fs::write(path, "").unwrap();
    });
    is_refused("a name that isn't text", |path| {
        let name = std::ffi::OsStr::from_bytes(b"\xff");
        fs::write(path.join(name), "").unwrap();
    });
}

#[test]
fn a_manifest_cannot_point_outside() {
    let manifest = |version: u32, name: &str| {
        format!(
            "{{\n  \"format_version\": {version},\n  \"step\": 20,\n  \"files\": [\n    \
             {{\"name\": \"{name}\", \"size\": 0, \"blake3\": \"{}\"}}\n  ]\n}}\n",
            blake3::hash(b"").to_hex()
        )
    };
    let with = |manifest: String| {
        move |path: &Path| {
            fs::remove_dir_all(path).unwrap();
            fs::create_dir(path).unwrap();
            fs::write(path.with_file_name("outside"), "").unwrap();
            fs::write(path.join("empty"), "").unwrap();
            fs::write(path.join(MANIFEST), manifest).unwrap();
        }
    };
    for name in ["../outside", "..", ".", "", "/etc/passwd", "a/b", MANIFEST] {
        let damage = is_refused(name, with(manifest(1, name)));
        assert!(damage.to_string().contains("is not a plain file name"), "{name}: {damage}");
    }
    let damage = is_refused("a later version", with(manifest(2, "empty")));
    assert!(matches!(damage, Damage::Version { found: 2 }), "{damage}");
    let damage = is_refused("no version", with(manifest(0, "empty")));
    assert!(matches!(damage, Damage::Version { found: 0 }), "{damage}");
    let run = run_with(&[10]);
    fs::create_dir(run.path().join("checkpoint-20")).unwrap();
    with(manifest(1, "empty"))(&run.path().join("checkpoint-20"));
    assert_eq!(find_newest(&RealFs, run.path()).unwrap().newest.unwrap().step, 20);
}

#[test]
fn no_manifest_but_the_right_one_is_accepted() {
    let run = run_with(&[20]);
    let path = run.path().join("checkpoint-20");
    let right = fs::read(path.join(MANIFEST)).unwrap();
    let manifests = manifest_like(right.clone());
    let outcome = TestRunner::default().run(&manifests, |bytes| {
        fs::write(path.join(MANIFEST), &bytes).unwrap();
        prop_assert_eq!(load(&RealFs, &path).is_ok(), bytes == right);
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// A manifest with a slice of it replaced, or any bytes.
fn manifest_like(right: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = right.len();
    let spliced =
        (0..len, 0..20usize, "[ \t\n0-9a-f\"{},:]{0,12}").prop_map(move |(at, cut, new)| {
            let mut bytes = right.clone();
            bytes.splice(at..(at + cut).min(len), new.into_bytes());
            bytes
        });
    prop_oneof![4 => spliced, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    let run = TempDir::new().unwrap();
    for name in ["", "a/b", "..", "/a", "a\\b", MANIFEST] {
        let error = save(&RealFs, run.path(), 1, &[(name, b"")]).unwrap_err();
        assert!(error.to_string().contains("cannot be a file of a checkpoint"), "{error}");
    }
    let error = save(&RealFs, run.path(), 1, &[("a", b""), ("a", b"")]).unwrap_err();
    assert!(error.to_string().ends_with("it occurs twice"), "{error}");
    assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
}

#[test]
fn pruning_counts_whole_checkpoints_alone() {
    let run = run_with(&[9900, 9950, 10_000, 10_050, 10_100]);
    fs::remove_file(run.path().join("checkpoint-10100").join(STATE)).unwrap();
    fs::create_dir(run.path().join("checkpoint-20000")).unwrap();
    let pruned = prune(&RealFs, run.path(), NonZeroUsize::new(2).unwrap()).unwrap();
    let removed = ["checkpoint-9950", "checkpoint-9900"].map(|name| run.path().join(name));
    assert_eq!(pruned.removed, removed);
    assert_eq!(pruned.broken.len(), 2);
    let left = RealFs.list(run.path()).unwrap();
    let expected = ["checkpoint-10000", "checkpoint-10050", "checkpoint-10100", "checkpoint-20000"];
    assert_eq!(left, expected);
    prune(&RealFs, run.path(), NonZeroUsize::MIN).unwrap();
    assert_eq!(find_newest(&RealFs, run.path()).unwrap().newest.unwrap().step, 10_050);
}

#[test]
fn leftovers_go_and_a_displaced_checkpoint_comes_back() {
    let run = run_with(&[10, 20, 30]);
    let path = |name: &str| run.path().join(name);
    fs::rename(path("checkpoint-20"), path(".checkpoint-20.old")).unwrap();
    fs::rename(path("checkpoint-30"), path(".checkpoint-30.tmp")).unwrap();
    fs::create_dir(path(".checkpoint-10.old")).unwrap();
    fs::write(path(".checkpoint-x.tmp"), "someone else's").unwrap();
    let removed = remove_leftovers(&RealFs, run.path()).unwrap();
    assert_eq!(removed, [path(".checkpoint-10.old"), path(".checkpoint-30.tmp")]);
    let left = RealFs.list(run.path()).unwrap();
    assert_eq!(left, [".checkpoint-x.tmp", "checkpoint-10", "checkpoint-20"]);
    assert_eq!(find_newest(&RealFs, run.path()).unwrap().newest.unwrap().step, 20);
}

#[test]
fn file_modes_follow_the_umask() {
    let run = run_with(&[1]);
    let probe = run.path().join("probe");
    fs::write(&probe, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let expected = mode(&probe);
    for file in [WEIGHTS, STATE, MANIFEST] {
        assert_eq!(mode(&run.path().join("checkpoint-1").join(file)), expected, "{file}");
    }
    write_replace(&RealFs, &probe, b"x").unwrap();
    assert_eq!(mode(&probe), expected);
}

#[test]
fn a_refused_operation_names_itself_and_the_file() {
    let error = RealFs.append(Path::new("/dev/full")).unwrap().write(b"x").unwrap_err();
    assert!(error.is_storage_full());
    assert_eq!(
        error.to_string(),
        "cannot write `/dev/full`: No space left on device (os error 28); \
         free space there or lower `save_total_limit`"
    );
    let run = TempDir::new().unwrap();
    fs::write(run.path().join("out"), "a file").unwrap();
    let error = save(&RealFs, &run.path().join("out"), 1, &[("a", b"")]).unwrap_err();
    assert!(error.to_string().contains(".checkpoint-1.tmp"), "{error}");
    assert_eq!(fs::read(run.path().join("out")).unwrap(), b"a file");
}
