//! What a run leaves for people and programs to read: logs, the trainer's state, results,
//! TensorBoard events and plots, in the files and with the fields that transformers and
//! LLaMA-Factory users know.
//!
//! All of them are views of one [`MetricsHistory`]. Nothing here reads a clock: times are passed
//! in, and the values that depend on them are known by name ([`is_wall_clock`]), so that two runs
//! can be compared without them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Number;

use crate::durable::DurableError;

pub mod loss_plot;
pub mod run_files;
pub mod tensorboard;
pub mod trainer_log;
pub mod trainer_state;

/// Why a file of the report could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum ReportError {
    #[error(transparent)]
    Io(#[from] DurableError),
    #[error("`{}` is not what this program writes: {reason}; move it away", path.display())]
    Json { path: PathBuf, reason: serde_json::Error },
    #[error("cannot draw `{}`: {reason}", path.display())]
    Plot { path: PathBuf, reason: String },
}

/// What was measured at one step: a row of `log_history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Row", into = "Row")]
pub struct LogEntry {
    /// The number of optimizer steps that had been made.
    pub step: u64,
    /// The part of the data that had been seen, in epochs.
    pub epoch: f64,
    /// Values by transformers' names: `loss`, `learning_rate`, `grad_norm`, `eval_loss`, …
    pub values: IndexMap<String, f64>,
}

impl LogEntry {
    /// An entry with these values.
    pub fn new<'a>(
        step: u64,
        epoch: f64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Self {
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { step, epoch, values }
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }
}

/// Whether the value `name` tells how long something took, and so differs from run to run.
pub fn is_wall_clock(name: &str) -> bool {
    ["_runtime", "_per_second", "_per_sec"].iter().any(|end| name.ends_with(end))
}

/// An entry as transformers writes it: flat, and sorted by name. What isn't a finite number is
/// `null`, as JSON has no other word for it.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Row(BTreeMap<String, Option<Number>>);

impl From<LogEntry> for Row {
    fn from(entry: LogEntry) -> Self {
        let number = |name: &str, value: f64| match name.starts_with("num_") && value.fract() == 0.0
        {
            true => Some(Number::from(value as i64)), // a count, such as `num_input_tokens_seen`
            false => Number::from_f64(value),
        };
        let mut row: BTreeMap<_, _> =
            entry.values.iter().map(|(name, value)| (name.clone(), number(name, *value))).collect();
        row.insert("epoch".to_owned(), Number::from_f64(entry.epoch));
        row.insert("step".to_owned(), Some(Number::from(entry.step)));
        Self(row)
    }
}

impl TryFrom<Row> for LogEntry {
    type Error = &'static str;

    fn try_from(Row(mut row): Row) -> Result<Self, Self::Error> {
        let step = row.remove("step").flatten().and_then(|step| step.as_u64());
        let step = step.ok_or("a row of `log_history` has no whole number as its `step`")?;
        let value = |number: Option<Number>| number.and_then(|number| number.as_f64());
        let epoch = value(row.remove("epoch").flatten()).unwrap_or(0.0);
        let values = row.into_iter().map(|(name, v)| (name, value(v).unwrap_or(f64::NAN)));
        Ok(Self { step, epoch, values: values.collect() })
    }
}

/// Everything that was measured since the run began, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MetricsHistory {
    entries: Vec<LogEntry>,
}

impl MetricsHistory {
    /// A history without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was measured last.
    pub fn push(&mut self, entry: LogEntry) {
        self.entries.push(entry);
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// The steps at which `name` was measured, and its values.
    pub fn series(&self, name: &str) -> Vec<(u64, f64)> {
        let value = |entry: &LogEntry| entry.get(name).map(|value| (entry.step, value));
        self.entries.iter().filter_map(value).collect()
    }

    /// The history without the values of the clock; entries that held nothing else stay, empty.
    #[must_use]
    pub fn without_wall_clock(&self) -> Self {
        let mut history = self.clone();
        for entry in &mut history.entries {
            entry.values.retain(|name, _| !is_wall_clock(name));
        }
        history
    }
}
