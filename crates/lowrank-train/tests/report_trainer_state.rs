//! `trainer_state.json` as transformers writes and reads it (`fixtures/report/make.py`).
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use lowrank_train::durable::RealFs;
use lowrank_train::report::trainer_state::{TRAINER_STATE, TrainerState};
use lowrank_train::report::{LogEntry, MetricsHistory};
use serde_json::{Value, json};

const FULL: &str = include_str!("fixtures/report/trainer_state.json");
const DEFAULT: &str = include_str!("fixtures/report/trainer_state_default.json");

fn history() -> MetricsHistory {
    let mut history = MetricsHistory::new();
    history.push(LogEntry::new(
        10,
        0.5,
        [("loss", 2.3456), ("grad_norm", 0.71875), ("learning_rate", 1e-4)],
    ));
    history.push(LogEntry::new(
        20,
        1.0,
        [("loss", 2.0), ("grad_norm", 0.5), ("learning_rate", 5e-5)],
    ));
    history.push(LogEntry::new(
        20,
        1.0,
        [
            ("eval_loss", 1.9375),
            ("eval_runtime", 0.4321),
            ("eval_samples_per_second", 37.03),
            ("eval_steps_per_second", 4.629),
            ("num_input_tokens_seen", 12345.0),
        ],
    ));
    history.push(LogEntry::new(
        20,
        1.0,
        [
            ("train_runtime", 12.3456),
            ("train_samples_per_second", 3.24),
            ("train_steps_per_second", 1.62),
            ("total_flos", 123_456_789.0),
            ("train_loss", 2.1728),
        ],
    ));
    history
}

fn state() -> TrainerState {
    TrainerState {
        best_global_step: Some(20),
        best_metric: Some(1.9375),
        best_model_checkpoint: Some("out/checkpoint-20".to_owned()),
        epoch: 1.0,
        eval_steps: 20,
        global_step: 20,
        log_history: history(),
        logging_steps: 10,
        max_steps: 20,
        num_input_tokens_seen: 12345,
        num_train_epochs: 1,
        save_steps: 20,
        total_flos: 123_456_789.0,
        train_batch_size: Some(2),
        ..TrainerState::default()
    }
}

/// The same names in the same order; numbers compare by value, since Python writes 1e-05 for 1e-5.
fn same_json(ours: &str, theirs: &str) {
    fn shape(value: &Value) -> Value {
        match value {
            Value::Number(number) => json!(number.as_f64()),
            Value::Array(items) => items.iter().map(shape).collect(),
            Value::Object(fields) => fields.iter().map(|(k, v)| json!([k, shape(v)])).collect(),
            other => other.clone(),
        }
    }
    let (ours, theirs): (Value, Value) =
        (serde_json::from_str(ours).unwrap(), serde_json::from_str(theirs).unwrap());
    assert_eq!(shape(&ours), shape(&theirs));
}

#[test]
fn the_file_is_that_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let path = state().save(&RealFs, folder.path()).unwrap();
    assert_eq!(path, folder.path().join(TRAINER_STATE));
    let ours = std::fs::read_to_string(path).unwrap();
    same_json(&ours, FULL);
    assert!(ours.contains("\n      \"step\": 10\n") && ours.ends_with("}\n"), "{ours}");
    assert_eq!(TrainerState::load(&RealFs, folder.path()).unwrap(), sorted(state()));
    let default = String::from_utf8(TrainerState::default().to_bytes().unwrap()).unwrap();
    same_json(&default, DEFAULT);
}

/// Reading gives the values of a row in the order of the file.
fn sorted(mut state: TrainerState) -> TrainerState {
    let mut history = MetricsHistory::new();
    for entry in state.log_history.entries() {
        let mut entry = entry.clone();
        entry.values.sort_keys();
        history.push(entry);
    }
    state.log_history = history;
    state
}

#[test]
fn a_file_of_transformers_is_read() {
    let read = TrainerState::from_bytes(FULL.as_bytes()).unwrap();
    assert_eq!(read, sorted(state()));
    assert_eq!(read.log_history.series("loss"), [(10, 2.3456), (20, 2.0)]);
    same_json(std::str::from_utf8(&read.to_bytes().unwrap()).unwrap(), FULL);
}

#[test]
fn runs_that_differ_in_speed_alone_have_equal_states() {
    const OF_THE_CLOCK: [&str; 6] = [
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    ];
    let mut slower = state();
    let mut history = MetricsHistory::new();
    for entry in slower.log_history.entries() {
        let mut entry = entry.clone();
        for name in OF_THE_CLOCK {
            entry.values.entry(name.to_owned()).and_modify(|value| *value *= 2.0);
        }
        history.push(entry);
    }
    slower.log_history = history;
    assert_ne!(slower, state());
    let bytes = |state: TrainerState| state.without_wall_clock().to_bytes().unwrap();
    assert_eq!(bytes(slower.clone()), bytes(state()));
    slower.log_history.push(LogEntry::new(21, 1.0, [("loss", 1.0)]));
    assert_ne!(bytes(slower), bytes(state()));
}

#[test]
fn what_is_not_finite_is_null() {
    let mut state = TrainerState::default();
    state.log_history.push(LogEntry::new(1, 0.1, [("eval_loss", f64::NAN), ("loss", 1.0)]));
    let bytes = state.to_bytes().unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    assert!(text.contains("\"eval_loss\": null"), "{text}");
    let read = TrainerState::from_bytes(&bytes).unwrap();
    assert!(read.log_history.entries()[0].get("eval_loss").unwrap().is_nan());
    assert_eq!(read.to_bytes().unwrap(), bytes);
}

#[test]
fn a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let with = |text: &str| {
        std::fs::write(folder.path().join(TRAINER_STATE), text).unwrap();
        TrainerState::load(&RealFs, folder.path()).unwrap_err().to_string()
    };
    let error = with(&FULL.replace("\"global_step\": 20", "\"global_step\": -20"));
    assert!(error.contains("trainer_state.json` is not what this program writes"), "{error}");
    assert!(error.contains("integer `-20`") && error.contains("line 7"), "{error}");
    let error = with(&FULL.replace("\"step\": 10", "\"step\": null"));
    assert!(error.contains("no whole number as its `step`"), "{error}");
}
