//! `trainer_state.json`, field by field as transformers' `TrainerState.save_to_json` writes it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{MetricsHistory, ReportError};
use crate::durable::{DurableFs, write_replace};

/// The file's name, in the output folder and in each checkpoint.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// Where a run is, and what it has measured. The fields are transformers', in the order of the
/// file: that of the alphabet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// The step of the best evaluation.
    pub best_global_step: Option<u64>,
    /// The best value of `metric_for_best_model`.
    pub best_metric: Option<f64>,
    /// The checkpoint folder of the best evaluation.
    pub best_model_checkpoint: Option<String>,
    /// The part of the data that has been seen, in epochs.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Optimizer steps made.
    pub global_step: u64,
    /// Always false here.
    pub is_hyper_param_search: bool,
    /// Whether this is the host's first process.
    pub is_local_process_zero: bool,
    /// Whether this is the run's first process.
    pub is_world_process_zero: bool,
    /// Everything that was logged.
    pub log_history: MetricsHistory,
    /// Steps between log entries.
    pub logging_steps: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Tokens that went into the model, pads included.
    pub num_input_tokens_seen: u64,
    /// Epochs of the whole run, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// State of transformers' callbacks; empty here.
    pub stateful_callbacks: Map<String, Value>,
    /// Floating-point operations so far.
    pub total_flos: f64,
    /// The micro-batch size.
    pub train_batch_size: Option<u64>,
    /// The name of a hyper-parameter trial; none here.
    pub trial_name: Option<String>,
    /// The arguments of a hyper-parameter trial; none here.
    pub trial_params: Option<Map<String, Value>>,
}

impl Default for TrainerState {
    /// The defaults of transformers.
    fn default() -> Self {
        Self {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: 500,
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: MetricsHistory::new(),
            logging_steps: 500,
            max_steps: 0,
            num_input_tokens_seen: 0,
            num_train_epochs: 0,
            save_steps: 500,
            stateful_callbacks: Map::new(),
            total_flos: 0.0,
            train_batch_size: None,
            trial_name: None,
            trial_params: None,
        }
    }
}

impl TrainerState {
    /// The state without what the clock had a part in: that of a resumed run equals that of one
    /// that was never interrupted.
    #[must_use]
    pub fn without_wall_clock(&self) -> Self {
        Self { log_history: self.log_history.without_wall_clock(), ..self.clone() }
    }

    /// The file's contents.
    ///
    /// # Errors
    /// Never for a state made by this crate; JSON allows for it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The state in the contents of a file.
    ///
    /// # Errors
    /// Says which line and field isn't as it should be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Writes `trainer_state.json` to `folder`, in place of an older one, and returns its path.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn save(&self, fs: &dyn DurableFs, folder: &Path) -> Result<PathBuf, ReportError> {
        let path = folder.join(TRAINER_STATE);
        let bytes = self.to_bytes().map_err(|reason| json_error(&path, reason))?;
        write_replace(fs, &path, &bytes)?;
        Ok(path)
    }

    /// Reads `trainer_state.json` from `folder`.
    ///
    /// # Errors
    /// [`ReportError::Io`], or [`ReportError::Json`] with line and field.
    pub fn load(fs: &dyn DurableFs, folder: &Path) -> Result<Self, ReportError> {
        let path = folder.join(TRAINER_STATE);
        Self::from_bytes(&fs.read(&path)?).map_err(|reason| json_error(&path, reason))
    }
}

fn json_error(path: &Path, reason: serde_json::Error) -> ReportError {
    ReportError::Json { path: path.to_owned(), reason }
}
