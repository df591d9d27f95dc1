//! Where a run stands: what a checkpoint holds and how a run goes on from it.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use lowrank_models::{DEFAULT_ADAPTER, PeftModel};
use lowrank_peft::WEIGHTS_NAME;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    optimizers::AdamW,
    recipe::plan::Plan,
    report::trainer_state::{TRAINER_STATE, TrainerState},
};

/// What a run has done so far, besides the weights. Nothing else influences the next step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunState {
    /// Updates made.
    pub step: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Sum of the steps' losses since the last entry of the log.
    pub loss_since_log: f64,
    /// Steps since the last entry of the log.
    pub steps_since_log: u64,
    /// Sum of all steps' losses.
    pub loss_in_all: f64,
    /// Settings that the run began with.
    pub settings: IndexMap<String, String>,
    /// Hash of the encoded rows that it began with.
    pub fingerprint: String,
}

/// The file of a [`RunState`] in a checkpoint.
pub const RUN_STATE: &str = "run_state.json";
/// The optimizer's moments in a checkpoint.
pub const OPTIMIZER: &str = "optimizer.safetensors";

impl RunState {
    /// The state before the first step.
    pub fn new(plan: &Plan, fingerprint: &str) -> Self {
        let fingerprint = fingerprint.to_owned();
        Self { settings: plan.settings(), fingerprint, ..Self::default() }
    }

    /// Mean of the steps' losses so far.
    pub fn train_loss(&self) -> f64 {
        self.loss_in_all / self.step.max(1) as f64
    }

    /// The files of a checkpoint that isn't only the model: this state, the log's and the moments.
    ///
    /// # Errors
    /// Those of serialization.
    pub fn files(&self, log: &TrainerState, optimizer: &AdamW) -> Result<Vec<(String, Vec<u8>)>> {
        let json = |e: serde_json::Error| Error::Batch(e.to_string());
        Ok(vec![
            (RUN_STATE.to_owned(), serde_json::to_vec_pretty(self).map_err(json)?),
            (TRAINER_STATE.to_owned(), log.to_bytes().map_err(json)?),
            (OPTIMIZER.to_owned(), lowrank_peft::serialize(&optimizer.state()?)?),
        ])
    }

    /// Takes up a checkpoint: weights, moments, state and log.
    ///
    /// # Errors
    /// When the checkpoint is of another run: other settings, other data, another adapter.
    pub fn resume(
        checkpoint: &Checkpoint,
        plan: &Plan,
        now: &RunState,
        model: &PeftModel,
        optimizer: &mut AdamW,
    ) -> Result<(Self, TrainerState)> {
        let state: Self = json(checkpoint, RUN_STATE)?;
        let log: TrainerState = json(checkpoint, TRAINER_STATE)?;
        let changes = plan.settings_changed_from(&state.settings);
        if !changes.is_empty() {
            return Err(Error::OtherSettings { path: checkpoint.path.clone(), changes });
        }
        if state.fingerprint != now.fingerprint {
            let what = "began with other data (rows, tokenizer or template changed); restore it, \
                        or start over with `overwrite_output_dir: true`";
            return Err(Error::State { path: checkpoint.path.clone(), what: what.to_owned() });
        }
        let weights = tensors(checkpoint, WEIGHTS_NAME)?;
        for parameter in model.model().modules.parameters_of(DEFAULT_ADAPTER) {
            let saved = weights.get(parameter.name()).ok_or_else(|| {
                let what = format!("lacks the tensor `{}`", parameter.name());
                Error::State { path: checkpoint.path.join(WEIGHTS_NAME), what }
            })?;
            parameter.set(saved)?;
        }
        optimizer.restore(&tensors(checkpoint, OPTIMIZER)?)?;
        Ok((state, log))
    }
}

fn file<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a [u8]> {
    checkpoint.files.get(name).map(Vec::as_slice).ok_or_else(|| {
        let what = format!("has no `{name}`; a checkpoint with `save_only_model` can't be resumed");
        Error::State { path: checkpoint.path.clone(), what }
    })
}

fn json<T: serde::de::DeserializeOwned>(checkpoint: &Checkpoint, name: &str) -> Result<T> {
    serde_json::from_slice(file(checkpoint, name)?)
        .map_err(|e| Error::State { path: checkpoint.path.join(name), what: e.to_string() })
}

fn tensors(checkpoint: &Checkpoint, name: &str) -> Result<BTreeMap<String, Tensor>> {
    let bytes = file(checkpoint, name)?;
    let loaded = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
        .map_err(|e| state_error(&checkpoint.path, name, &e))?;
    Ok(loaded.into_iter().collect())
}

fn state_error(folder: &Path, name: &str, error: &candle_core::Error) -> Error {
    Error::State { path: folder.join(name), what: error.to_string() }
}
