//! `trainer_log.jsonl`: LLaMA-Factory's fields, and no step twice after a resume.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use lowrank_train::durable::RealFs;
use lowrank_train::report::trainer_log::{Progress, TRAINER_LOG, TrainerLog, TrainerLogLine};
use lowrank_train::report::{LogEntry, MetricsHistory};

fn progress(current_steps: u64) -> Progress {
    Progress {
        current_steps,
        total_steps: 30,
        first_step: 0,
        elapsed: Duration::from_millis(61_500),
        total_tokens: 0,
        first_tokens: 0,
        vram: None,
    }
}

fn json(line: &TrainerLogLine) -> String {
    serde_json::to_string(line).unwrap()
}

#[test]
fn a_line_has_the_fields_of_llama_factory() {
    let entry = LogEntry::new(
        10,
        0.33,
        [("loss", 2.5), ("learning_rate", 1e-4), ("grad_norm", 1.0), ("rewards/accuracies", 0.75)],
    );
    assert_eq!(
        json(&TrainerLogLine::new(Some(&entry), &progress(10))),
        "{\"current_steps\":10,\"total_steps\":30,\"loss\":2.5,\"accuracy\":0.75,\"lr\":0.0001,\
         \"epoch\":0.33,\"percentage\":33.33,\"elapsed_time\":\"0:01:01\",\
         \"remaining_time\":\"0:02:03\"}"
    );
    let counted = Progress {
        total_tokens: 5000,
        first_tokens: 2000,
        vram: Some((3 << 29, 1 << 31)),
        ..progress(10)
    };
    let entry = LogEntry::new(10, 0.33, [("eval_loss", f64::INFINITY), ("reward", 0.5)]);
    assert_eq!(
        json(&TrainerLogLine::new(Some(&entry), &counted)),
        "{\"current_steps\":10,\"total_steps\":30,\"eval_loss\":null,\"reward\":0.5,\
         \"epoch\":0.33,\"percentage\":33.33,\"elapsed_time\":\"0:01:01\",\
         \"remaining_time\":\"0:02:03\",\"throughput\":48.78,\"total_tokens\":5000,\
         \"vram_allocated\":1.5,\"vram_reserved\":2.0}"
    );
}

#[test]
fn an_evaluation_alone_reports_progress() {
    assert_eq!(
        json(&TrainerLogLine::new(None, &progress(5))),
        "{\"current_steps\":5,\"total_steps\":30,\"percentage\":16.67,\
         \"elapsed_time\":\"0:01:01\",\"remaining_time\":\"0:05:07\"}"
    );
    let nothing_to_do = Progress { total_steps: 0, ..progress(0) };
    let line = TrainerLogLine::new(None, &nothing_to_do);
    assert_eq!((line.percentage, line.remaining_time.as_str()), (100.0, "0:00:00"));
}

#[test]
fn times_are_written_as_python_writes_them() {
    let cases: Vec<(u64, String)> =
        serde_json::from_str(include_str!("fixtures/report/times.json")).unwrap();
    for (seconds, expected) in cases {
        let elapsed = Duration::from_millis(seconds * 1000 + 999);
        let line = TrainerLogLine::new(None, &Progress { elapsed, ..progress(1) });
        assert_eq!(line.elapsed_time, expected);
    }
}

#[test]
fn a_resumed_run_counts_its_own_steps() {
    let resumed = Progress { first_step: 10, ..progress(20) };
    // Ten steps in 61.5 s, ten to go.
    assert_eq!(TrainerLogLine::new(None, &resumed).remaining_time, "0:01:01");
    let just_begun = Progress { first_step: 20, ..progress(20) };
    assert_eq!(TrainerLogLine::new(None, &just_begun).remaining_time, "0:00:00");
}

fn entry(step: u64, name: &str, value: f64) -> LogEntry {
    LogEntry::new(step, step as f64 / 30.0, [(name, value)])
}

/// What a run to step 20 logs, with an evaluation at 20.
fn entries() -> Vec<LogEntry> {
    vec![entry(10, "loss", 0.1 + 0.2), entry(20, "loss", 2.0), entry(20, "eval_loss", 1.5)]
}

fn write(log: &mut TrainerLog<'_>, entries: &[LogEntry]) {
    for entry in entries {
        log.write(&TrainerLogLine::new(Some(entry), &progress(entry.step))).unwrap();
    }
    log.sync().unwrap();
}

fn read(folder: &Path) -> String {
    fs::read_to_string(folder.join(TRAINER_LOG)).unwrap()
}

fn history_of(entries: &[LogEntry]) -> MetricsHistory {
    let mut history = MetricsHistory::new();
    entries.iter().for_each(|entry| history.push(entry.clone()));
    // As it comes out of a checkpoint.
    serde_json::from_slice(&serde_json::to_vec(&history).unwrap()).unwrap()
}

#[test]
fn no_step_occurs_twice_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    write(&mut TrainerLog::create(&RealFs, folder.path()).unwrap(), &entries());
    let uninterrupted = read(folder.path());
    // The checkpoint was taken when one, two or all three had been logged.
    for known in 0..=3 {
        let history = history_of(&entries()[..known]);
        let mut log = TrainerLog::resume(&RealFs, folder.path(), &history).unwrap();
        assert_eq!(read(folder.path()).lines().count(), known);
        write(&mut log, &entries()[known..]);
        assert_eq!(read(folder.path()), uninterrupted);
    }
    drop(TrainerLog::create(&RealFs, folder.path()).unwrap());
    assert_eq!(read(folder.path()), "");
}

#[test]
fn lines_of_another_run_go() {
    let folder = tempfile::tempdir().unwrap();
    let same_value_twice = [entry(10, "loss", 2.0), entry(20, "loss", 2.0)];
    let evaluations = [entry(20, "eval_loss", 1.25), entry(20, "eval_loss", 1.5)];
    let mut log = TrainerLog::create(&RealFs, folder.path()).unwrap();
    write(&mut log, &same_value_twice);
    write(&mut log, &evaluations);
    let history = history_of(&entries()[1..]);
    drop(TrainerLog::resume(&RealFs, folder.path(), &history).unwrap());
    let lines: Vec<TrainerLogLine> =
        read(folder.path()).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept: Vec<_> = lines.iter().map(|l| (l.current_steps, l.loss, l.eval_loss)).collect();
    assert_eq!(kept, [(20, Some(2.0), None), (20, None, Some(1.5))]);
}

#[test]
fn a_line_that_was_cut_off_goes() {
    let folder = tempfile::tempdir().unwrap();
    write(&mut TrainerLog::create(&RealFs, folder.path()).unwrap(), &entries());
    let whole = read(folder.path());
    let history = history_of(&entries());
    let path = folder.path().join(TRAINER_LOG);
    let line_ends = whole.match_indices('\n').flat_map(|(at, _)| [at, at + 1]);
    for cut in (0..whole.len()).step_by(25).chain(line_ends) {
        let lines = whole[..cut].matches('\n').count();
        fs::write(&path, &whole[..cut]).unwrap();
        drop(TrainerLog::resume(&RealFs, folder.path(), &history).unwrap());
        let expected: String = whole.split_inclusive('\n').take(lines).collect();
        assert_eq!(read(folder.path()), expected, "cut at {cut}");
    }
    fs::write(&path, [b"\xff\x00{}\n[1]\n", whole.as_bytes(), whole.as_bytes()].concat()).unwrap();
    drop(TrainerLog::resume(&RealFs, folder.path(), &history).unwrap());
    assert_eq!(read(folder.path()), whole);
}

#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.path().join(TRAINER_LOG)).unwrap();
    let mut log = TrainerLog::create(&RealFs, folder.path()).unwrap();
    let error = log.write(&TrainerLogLine::new(None, &progress(1))).unwrap_err().to_string();
    assert!(error.contains("trainer_log.jsonl`: No space left on device"), "{error}");
}
