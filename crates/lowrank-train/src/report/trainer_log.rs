//! `trainer_log.jsonl`: one line for each log entry, with the fields of LLaMA-Factory's
//! `LogCallback`, for its web page and for whoever watches a run with `tail -f`.
//!
//! Remaining time and throughput count what this process did. (LLaMA-Factory divides the steps and
//! tokens of the whole run by the time since its last start, so that both jump after a resume.)

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LogEntry, MetricsHistory, ReportError};
use crate::durable::{DurableFile, DurableFs, write_replace};

/// The file's name in the output folder.
pub const TRAINER_LOG: &str = "trainer_log.jsonl";

/// How far the run is. Steps are optimizer steps when training, batches when only evaluating.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps made.
    pub current_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The step at which this process began; 0 unless it resumed.
    pub first_step: u64,
    /// The time since this process began.
    pub elapsed: Duration,
    /// Tokens seen by the whole run; 0 if they aren't counted.
    pub total_tokens: u64,
    /// Tokens that had been seen when this process began.
    pub first_tokens: u64,
    /// Peak device memory allocated and reserved, in bytes, if it is to be recorded.
    pub vram: Option<(u64, u64)>,
}

/// One line of the file. Fields without a value are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are LLaMA-Factory's")]
pub struct TrainerLogLine {
    pub current_steps: u64,
    pub total_steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predict_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<f64>,
    pub percentage: f64,
    pub elapsed_time: String,
    pub remaining_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_allocated: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_reserved: Option<f64>,
}

impl TrainerLogLine {
    /// The line for `entry`, or for the progress of an evaluation if there is none.
    pub fn new(entry: Option<&LogEntry>, progress: &Progress) -> Self {
        let value = |name: &str| entry.and_then(|entry| entry.get(name));
        let seconds = progress.elapsed.as_secs_f64();
        let counts_tokens = progress.total_tokens > 0;
        let new_tokens = progress.total_tokens.saturating_sub(progress.first_tokens);
        let throughput = (counts_tokens && seconds > 0.0)
            .then(|| round_to_hundredths(new_tokens as f64 / seconds));
        let gib = |bytes: u64| round_to_hundredths(bytes as f64 / f64::from(1 << 30));
        Self {
            current_steps: progress.current_steps,
            total_steps: progress.total_steps,
            loss: value("loss"),
            eval_loss: value("eval_loss"),
            predict_loss: value("predict_loss"),
            reward: value("reward"),
            accuracy: value("rewards/accuracies"),
            lr: value("learning_rate"),
            epoch: entry.map(|entry| entry.epoch),
            percentage: progress.percentage(),
            elapsed_time: hours_minutes_seconds(progress.elapsed),
            remaining_time: hours_minutes_seconds(progress.remaining()),
            throughput,
            total_tokens: counts_tokens.then_some(progress.total_tokens),
            vram_allocated: progress.vram.map(|(allocated, _)| gib(allocated)),
            vram_reserved: progress.vram.map(|(_, reserved)| gib(reserved)),
        }
    }

    /// Whether this is the line of `entry`: the same step, and the same values where it has any.
    fn is_of(&self, entry: &LogEntry) -> bool {
        let same = |mine: Option<f64>, name: &str| {
            mine == entry.get(name).filter(|value| value.is_finite())
        };
        self.current_steps == entry.step
            && same(self.loss, "loss")
            && same(self.eval_loss, "eval_loss")
            && same(self.lr, "learning_rate")
    }
}

impl Progress {
    fn percentage(&self) -> f64 {
        match self.total_steps {
            0 => 100.0,
            total => round_to_hundredths(self.current_steps as f64 / total as f64 * 100.0),
        }
    }

    fn remaining(&self) -> Duration {
        let made = self.current_steps.saturating_sub(self.first_step);
        let left = self.total_steps.saturating_sub(self.current_steps);
        if made == 0 {
            return Duration::ZERO;
        }
        let seconds = self.elapsed.as_secs_f64() / made as f64 * left as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// The file, open for adding lines.
pub struct TrainerLog<'a> {
    file: Box<dyn DurableFile + 'a>,
}

impl<'a> TrainerLog<'a> {
    /// Starts an empty log in `output_dir`, in place of one that is there.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn create(fs: &'a dyn DurableFs, output_dir: &Path) -> Result<Self, ReportError> {
        Ok(Self { file: fs.create(&log_path(output_dir))? })
    }

    /// Goes on with the log in `output_dir` after a resume: only lines of entries that are in
    /// `history` stay, so that no step occurs twice, and a line that was cut off goes.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn resume(
        fs: &'a dyn DurableFs,
        output_dir: &Path,
        history: &MetricsHistory,
    ) -> Result<Self, ReportError> {
        let path = log_path(output_dir);
        if fs.exists(&path)? {
            let old = fs.read(&path)?;
            let kept = lines_of(&old, history);
            if kept != old {
                write_replace(fs, &path, &kept)?;
            }
        }
        Ok(Self { file: fs.append(&path)? })
    }

    /// Adds a line, in one write.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn write(&mut self, line: &TrainerLogLine) -> Result<(), ReportError> {
        let json_error = |reason| ReportError::Json { path: PathBuf::from(TRAINER_LOG), reason };
        let mut bytes = serde_json::to_vec(line).map_err(json_error)?;
        bytes.push(b'\n');
        Ok(self.file.write(&bytes)?)
    }

    /// Returns once all lines are on the disk; to be called before a checkpoint is saved, so that
    /// the log is never behind it.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn sync(&mut self) -> Result<(), ReportError> {
        Ok(self.file.sync()?)
    }
}

fn log_path(output_dir: &Path) -> PathBuf {
    output_dir.join(TRAINER_LOG)
}

/// The lines in `log` that belong to entries of `history`, each entry's at most once.
fn lines_of(log: &[u8], history: &MetricsHistory) -> Vec<u8> {
    let mut entries = history.entries().iter();
    let mut kept = Vec::new();
    for bytes in log.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let Ok(line) = serde_json::from_slice::<TrainerLogLine>(bytes) else { continue };
        let mut rest = entries.clone();
        if rest.any(|entry| line.is_of(entry)) {
            entries = rest;
            kept.extend_from_slice(bytes);
        }
    }
    kept
}

fn round_to_hundredths(value: f64) -> f64 {
    // Through decimal digits, as Python's `round` does it; multiplying by 100 would round 1.005 up.
    format!("{value:.2}").parse().unwrap_or(value)
}

/// The form of Python's `str(timedelta)`, without fractions: `0:00:07`, `2 days, 3:04:05`.
fn hours_minutes_seconds(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        _ => format!("{days} days, {clock}"),
    }
}
