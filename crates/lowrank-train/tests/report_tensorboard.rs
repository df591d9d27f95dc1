//! Event files, byte for byte those of TensorBoard's own writer (`fixtures/report/make_events.py`).
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_train::durable::RealFs;
use lowrank_train::report::LogEntry;
use lowrank_train::report::tensorboard::{TensorBoardLog, Writer};

const WRITER: Writer<'_> = Writer { host: "host", pid: 42 };

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn create(folder: &Path, wall_time: f64, resumed_after: Option<u64>) -> TensorBoardLog<'static> {
    TensorBoardLog::create(&RealFs, folder, WRITER, wall_time, resumed_after).unwrap()
}

#[test]
fn the_bytes_are_those_of_tensorboard() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("runs/one");
    let mut log = create(&folder, 1_700_000_000.25, None);
    let loss =
        LogEntry::new(10, 0.5, [("loss", 2.345), ("learning_rate", 2e-4), ("grad_norm", 0.0)]);
    log.log(&loss, 1_700_000_001.5).unwrap();
    let eval = [("eval_loss", 1.5), ("eval_samples_per_second", 12.125)];
    log.log(&LogEntry::new(200, 1.0, eval), 1_700_000_002.5).unwrap();
    let test = [("test_loss", f64::INFINITY)];
    log.log(&LogEntry::new(200, 1.0, test), 1_700_000_003.5).unwrap();
    log.sync().unwrap();
    let path = folder.join("events.out.tfevents.1700000000.host.42.0");
    assert_eq!(files(&folder), [path.as_path()]);
    assert_eq!(fs::read(path).unwrap(), include_bytes!("fixtures/report/events.bin"));
}

#[test]
fn a_resumed_run_makes_tensorboard_forget_later_steps() {
    let folder = tempfile::tempdir().unwrap();
    create(folder.path(), 1_700_000_100.0, Some(100)).sync().unwrap();
    let bytes = fs::read(&files(folder.path())[0]).unwrap();
    assert_eq!(bytes, include_bytes!("fixtures/report/resumed_events.bin"));
}

#[test]
fn files_sort_in_the_order_of_the_runs_though_the_clock_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let names = [1_700_000_000.9, 1_700_000_000.95, 1_600_000_000.0, 1_800_000_000.0].map(|time| {
        let before = files(folder.path());
        create(folder.path(), time, None).sync().unwrap();
        let after = files(folder.path());
        assert_eq!(after[..before.len()], before[..], "the new file must sort last");
        assert_eq!(after.len(), before.len() + 1);
        after.last().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    });
    assert_eq!(names[2], "events.out.tfevents.1700000002.host.42.0");
    assert_eq!(names[3], "events.out.tfevents.1800000000.host.42.0");
}
