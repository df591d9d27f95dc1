//! The files of a run: logs, checkpoints, the adapter, results and curves.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lowrank_models::{DEFAULT_ADAPTER, LABELS_NAME};

use crate::{
    Evaluation, Result, RunState, Setup, checkpoint,
    durable::{DurableFs, create_dirs, write_replace},
    recipe::plan::{Cadence, Plan},
    report::{
        LogEntry, loss_plot, run_files,
        tensorboard::{TensorBoardLog, Writer},
        trainer_log::{Progress, TrainerLog, TrainerLogLine},
        trainer_state::TrainerState,
    },
    setup::label_names,
};

/// What a run writes into its folder.
pub(crate) struct Output<'a> {
    fs: &'a dyn DurableFs,
    plan: &'a Plan,
    state: TrainerState,
    /// None for an evaluation alone: its folder may hold the log of the run that it evaluates.
    log: Option<TrainerLog<'a>>,
    events: Option<TensorBoardLog<'a>>,
    first_step: u64,
    first_tokens: u64,
}

impl<'a> Output<'a> {
    /// The log of a run that begins.
    pub(crate) fn first_log(plan: &Plan, setup: &Setup) -> TrainerState {
        let steps = |cadence: Cadence| match cadence {
            Cadence::Never => 0,
            Cadence::Epoch => setup.loader.steps_per_epoch(),
            Cadence::Every(interval) => interval.steps(setup.total_steps),
        };
        let epochs = setup.total_steps.div_ceil(setup.loader.steps_per_epoch());
        TrainerState {
            max_steps: setup.total_steps,
            num_train_epochs: epochs,
            logging_steps: steps(plan.output.logging),
            save_steps: steps(plan.output.save),
            eval_steps: steps(plan.eval.eval_strategy),
            train_batch_size: Some(plan.train.per_device_train_batch_size as u64),
            ..TrainerState::default()
        }
    }

    /// Opens the logs; those of a resumed run are cut back to where it goes on.
    pub(crate) fn open(
        fs: &'a dyn DurableFs,
        plan: &'a Plan,
        state: TrainerState,
        run: &RunState,
        total_steps: u64,
    ) -> Result<Self> {
        let folder = &plan.output.output_dir;
        let log = match run.step {
            _ if !plan.train.do_train => None,
            0 => Some(TrainerLog::create(fs, folder)?),
            _ => Some(TrainerLog::resume(fs, folder, &state.log_history)?),
        };
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let writer = Writer { host: host.trim(), pid: std::process::id() };
        let resumed = (run.step > 0).then_some(run.step);
        let logging_dir = folder.join("runs");
        let events = match plan.output.tensorboard && plan.train.do_train {
            true => {
                create_dirs(fs, &logging_dir)?;
                Some(TensorBoardLog::create(fs, &logging_dir, writer, wall_time(), resumed)?)
            }
            false => None,
        };
        let state = TrainerState { max_steps: total_steps, ..state };
        let (first_step, first_tokens) = (run.step, run.tokens);
        Ok(Self { fs, plan, state, log, events, first_step, first_tokens })
    }

    /// The log's state when the run has come to `run`, whether or not that step was logged.
    pub(crate) fn state_at(&mut self, run: &RunState, epoch: f64) -> &TrainerState {
        self.state.global_step = run.step;
        self.state.epoch = epoch;
        self.state.num_input_tokens_seen = run.tokens;
        &self.state
    }

    /// Adds an entry to every log.
    pub(crate) fn log(&mut self, entry: LogEntry, run: &RunState, elapsed: Duration) -> Result<()> {
        let progress = Progress {
            current_steps: run.step,
            total_steps: self.state.max_steps,
            first_step: self.first_step,
            elapsed,
            total_tokens: run.tokens,
            first_tokens: self.first_tokens,
            vram: None,
        };
        if let Some(log) = &mut self.log {
            log.write(&TrainerLogLine::new(Some(&entry), &progress))?;
        }
        if let Some(events) = &mut self.events {
            events.log(&entry, wall_time())?;
        }
        self.state_at(run, entry.epoch);
        self.state.log_history.push(entry);
        Ok(())
    }

    /// The adapter as PEFT reads it, with the label names of a classifier.
    pub(crate) fn adapter_files(&self, setup: &Setup) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = setup.model.adapter_files(DEFAULT_ADAPTER)?;
        if let Some(labels) = label_names(setup) {
            files.push((LABELS_NAME.to_owned(), labels.to_json()?.into_bytes()));
        }
        Ok(files)
    }

    /// Writes a checkpoint and removes those beyond `save_total_limit`.
    pub(crate) fn save(&mut self, step: u64, files: &[(String, Vec<u8>)]) -> Result<PathBuf> {
        if let Some(log) = &mut self.log {
            log.sync()?;
        }
        if let Some(events) = &mut self.events {
            events.sync()?;
        }
        let folder = &self.plan.output.output_dir;
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let saved = checkpoint::save(self.fs, folder, step, &files)?;
        if let Some(keep) = self.plan.output.save_total_limit.and_then(NonZeroUsize::new) {
            checkpoint::prune(self.fs, folder, keep)?;
        }
        Ok(saved)
    }

    /// `eval_results.json`.
    pub(crate) fn eval_results(
        &self,
        found: &Evaluation,
        runtime: Duration,
        epoch: f64,
    ) -> Result<()> {
        let mut metrics = run_files::speed_metrics("eval", runtime, Some(found.rows as f64), None);
        metrics.insert("epoch".to_owned(), epoch);
        metrics.insert("eval_loss".to_owned(), found.loss);
        if let Some(accuracy) = found.accuracy {
            metrics.insert("eval_accuracy".to_owned(), accuracy);
        }
        run_files::save_metrics(self.fs, &self.plan.output.output_dir, "eval", &metrics)?;
        Ok(())
    }

    /// The last files: adapter, state, results, curves.
    pub(crate) fn finish(
        &mut self,
        adapter: &[(String, Vec<u8>)],
        run: &RunState,
        epoch: f64,
        runtime: Duration,
    ) -> Result<()> {
        let folder = &self.plan.output.output_dir;
        for (name, bytes) in adapter {
            write_replace(self.fs, &folder.join(name), bytes)?;
        }
        let steps = run.step.saturating_sub(self.first_step) as f64;
        let mut metrics = run_files::speed_metrics("train", runtime, None, Some(steps));
        metrics.insert("train_loss".to_owned(), run.train_loss());
        metrics.insert("epoch".to_owned(), epoch);
        run_files::save_metrics(self.fs, folder, "train", &metrics)?;
        let fs = self.fs;
        self.state_at(run, epoch).save(fs, folder)?;
        if let Some(log) = &mut self.log {
            log.sync()?;
        }
        if let Some(events) = &mut self.events {
            events.sync()?;
        }
        if self.plan.output.plot_loss {
            loss_plot::plot(folder, &self.state.log_history, "loss")?;
        }
        Ok(())
    }
}

/// Seconds since 1970, for TensorBoard's time axis.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
