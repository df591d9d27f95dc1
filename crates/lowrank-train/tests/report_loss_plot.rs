//! Plots: LLaMA-Factory's file names and smoothing, and something to see in them.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::path::Path;

use lowrank_train::report::loss_plot::{plot, smooth};
use lowrank_train::report::{LogEntry, MetricsHistory};
use serde::Deserialize;

#[derive(Deserialize)]
struct Smoothing {
    values: Vec<f64>,
    smoothed: Vec<f64>,
}

#[test]
fn smoothing_is_that_of_llama_factory() {
    let cases: Vec<Smoothing> =
        serde_json::from_str(include_str!("fixtures/report/smooth.json")).unwrap();
    for case in cases {
        let smoothed = smooth(&case.values);
        assert_eq!(smoothed.len(), case.smoothed.len());
        for (ours, theirs) in smoothed.iter().zip(&case.smoothed) {
            assert!((ours - theirs).abs() <= 1e-12 * theirs.abs(), "{ours} for {theirs}");
        }
    }
    assert!(smooth(&[]).is_empty());
}

/// A noisy loss that falls, evaluated every 100 steps.
fn history(steps: u64) -> MetricsHistory {
    let mut history = MetricsHistory::new();
    let mut noise = 0x1234_5678u64;
    for step in (10..=steps).step_by(10) {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let jitter = (noise >> 40) as f64 / f64::from(1 << 24) - 0.5;
        let course = 0.9 + 1.8 * (-(step as f64) / 350.0).exp();
        history.push(LogEntry::new(step, 0.0, [("loss", course + 0.3 * jitter)]));
        if step % 100 == 0 {
            history.push(LogEntry::new(step, 0.0, [("eval_loss", course + 0.05)]));
        }
    }
    history
}

/// Width and height in a PNG's header.
fn png_size(bytes: &[u8]) -> (u32, u32) {
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

fn drawn(folder: &Path, history: &MetricsHistory, key: &str) -> (Vec<u8>, String) {
    let paths = plot(folder, history, key).unwrap();
    assert_eq!(paths.len(), 2);
    (fs::read(&paths[0]).unwrap(), fs::read_to_string(&paths[1]).unwrap())
}

#[test]
fn the_loss_is_drawn_with_its_evaluations() {
    let folder = tempfile::tempdir().unwrap();
    let (png, svg) = drawn(folder.path(), &history(1000), "loss");
    assert_eq!(png_size(&png), (1000, 600));
    for text in ["Training loss", "step", "loss (smoothed)", "eval loss"] {
        assert!(svg.lines().any(|line| line == text), "{text}");
    }
    // A point for each evaluation, and one in the legend.
    assert_eq!(svg.matches("<circle").count(), 11);
    let long_lines = svg.lines().filter(|l| l.contains("<polyline") && l.len() > 500).count();
    assert_eq!(long_lines, 2);
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["training_loss.png", "training_loss.svg"]);
    // Drawing it again replaces the files, and gives the same bytes.
    assert_eq!(drawn(folder.path(), &history(1000), "loss"), (png, svg));
}

#[test]
fn names_with_a_slash_become_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = MetricsHistory::new();
    history.push(LogEntry::new(1, 0.0, [("rewards/accuracies", 0.5)]));
    let paths = plot(folder.path(), &history, "rewards/accuracies").unwrap();
    assert_eq!(paths[0], folder.path().join("training_rewards_accuracies.png"));
}

#[test]
fn what_cannot_be_drawn_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    assert!(plot(folder.path(), &history(100), "reward").unwrap().is_empty());
    let mut not_finite = MetricsHistory::new();
    not_finite.push(LogEntry::new(1, 0.0, [("loss", f64::NAN)]));
    assert!(plot(folder.path(), &not_finite, "loss").unwrap().is_empty());
    for value in [0.0, 1.0, -3e30, 1e-30] {
        let mut history = not_finite.clone();
        history.push(LogEntry::new(2, 0.0, [("loss", value), ("eval_loss", f64::INFINITY)]));
        assert_eq!(png_size(&drawn(folder.path(), &history, "loss").0), (1000, 600));
    }
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = plot(&missing, &history(100), "loss").unwrap_err().to_string();
    assert!(error.contains("missing/training_loss.png"), "{error}");
}
