//! The training loop. It reads from top to bottom as a run happens.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use lowrank_autograd::{Awake, Gradients, profile};
use lowrank_data::Example;
use lowrank_models::Task;
use lowrank_peft::WEIGHTS_NAME;

use crate::{
    Batch, Error, Evaluation, Result, RunState, Setup, checkpoint,
    checkpoint::RunLock,
    durable::{DurableFs, RealFs, create_dirs},
    evaluate::evaluate,
    objectives::{Objective, Passes, Sft},
    optimizers::{AdamW, AdamWSettings},
    output::Output,
    recipe::plan::{Cadence, Plan, Resume},
    report::LogEntry,
    schedule::Schedule,
};

/// Who hears how a run goes. Nothing that it does changes the run.
pub trait Observer {
    /// The run begins, after `first_step` updates of an earlier one.
    fn begin(&mut self, first_step: u64, total_steps: u64);
    /// A step is done.
    fn step(&mut self, report: &StepReport);
    /// Held-out rows were evaluated.
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation);
    /// A checkpoint is on the disk.
    fn saved(&mut self, folder: &Path);
    /// Something deserves attention.
    fn remark(&mut self, text: &str);
}

/// One update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Updates made, this one included.
    pub step: u64,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Mean loss over the step's targets.
    pub loss: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read by the step.
    pub tokens: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Updates made.
    pub step: u64,
    /// Updates that were planned.
    pub total_steps: u64,
    /// Mean of the steps' losses.
    pub train_loss: f64,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
    /// Whether it was asked to stop before its end.
    pub interrupted: bool,
}

/// A run.
pub struct Trainer<'a> {
    plan: &'a Plan,
    setup: Setup,
    objective: Box<dyn Objective>,
    optimizer: AdamW,
    schedule: Schedule,
    gradients: Gradients,
    state: RunState,
    output: Output<'a>,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
    last_evaluation: Option<Evaluation>,
    _lock: RunLock,
}

const FS: &RealFs = &RealFs;

/// The name under which [`profile`] has the time of a step that belongs to no operation.
pub const STEP: &str = "step";

impl<'a> Trainer<'a> {
    /// A run at its beginning, or where its newest whole checkpoint left it. `stop` ends it after
    /// the step at hand, with a checkpoint.
    ///
    /// # Errors
    /// When the output folder is in use or can't be written, or its checkpoint is another run's.
    pub fn new(
        plan: &'a Plan,
        setup: Setup,
        observer: &'a mut dyn Observer,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let folder = &plan.output.output_dir;
        create_dirs(FS, folder)?;
        let lock = RunLock::acquire(folder)?;
        checkpoint::remove_leftovers(FS, folder)?;
        let adamw = plan.train.optimizer;
        let settings = AdamWSettings {
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            epsilon: adamw.epsilon,
            weight_decay: adamw.weight_decay,
            decay_all: false,
        };
        let mut optimizer = AdamW::new(setup.model.trainable(), settings)?;
        let mut state = RunState::new(plan, &setup.fingerprint);
        let found = find(plan, observer)?;
        let mut log = Output::first_log(plan, &setup);
        if let Some(found) = &found {
            (state, log) = RunState::resume(found, plan, &state, &setup.model, &mut optimizer)?;
            observer.remark(&format!("goes on from `{}`", found.path.display()));
        }
        let train = &plan.train;
        let schedule =
            train.lr_scheduler.schedule(train.learning_rate, train.warmup, setup.total_steps)?;
        let output = Output::open(FS, plan, log, &state, setup.total_steps)?;
        Ok(Self {
            plan,
            setup,
            objective: Box::new(Sft),
            optimizer,
            schedule,
            gradients: Gradients::new(),
            state,
            output,
            observer,
            stop,
            last_evaluation: None,
            _lock: lock,
        })
    }

    /// Trains to the end of the plan.
    ///
    /// # Errors
    /// When a loss or gradient isn't finite (the weights are then those of the step before), or a
    /// file can't be written.
    pub fn run(mut self) -> Result<Summary> {
        let started = Instant::now();
        self.observer.begin(self.state.step, self.setup.total_steps);
        while self.plan.train.do_train && self.state.step < self.setup.total_steps {
            let report = self.step()?;
            self.observer.step(&report);
            self.log_if_due(&report, started)?;
            self.evaluate_if_due(started)?;
            let interrupted = self.stop.load(Ordering::Relaxed);
            self.save_if_due(interrupted)?;
            if interrupted {
                return Ok(self.summary(true));
            }
        }
        self.finish(started)
    }

    /// One update: forward and backward of every micro-batch, clipping, AdamW.
    fn step(&mut self) -> Result<StepReport> {
        let (_time, _awake) = (profile::scope(STEP), Awake::begin());
        let number = self.state.step + 1;
        let samples = self.setup.loader.step(self.state.step);
        let batches = samples.iter().map(|s| self.batch(s)).collect::<Result<Vec<Batch>>>()?;
        // Counted before the first forward pass: a loss is a sum, divided once, so that every
        // target weighs the same however the step is cut into micro-batches.
        let targets: usize = batches.iter().map(|b| b.targets.count()).sum();
        let share = 1.0 / targets.max(1) as f32;
        let mut sum = 0.0;
        self.gradients.clear();
        for batch in batches.iter().filter(|b| b.targets.count() > 0) {
            let passes = Passes::training(&self.setup.model, batch, self.plan.train.seed, number)
                .with_checkpointing(self.plan.train.gradient_checkpointing);
            let loss = self.objective.loss(self.setup.model.model(), batch, &passes)?;
            sum += f64::from(loss.sum.data().to_scalar::<f32>()?);
            loss.sum.backward(share, &mut self.gradients)?;
        }
        let loss = sum / targets.max(1) as f64;
        let grad_norm = self.gradients.global_norm()?;
        self.check_finite(number, "the loss", loss, &samples)?;
        self.check_finite(number, "the gradient's norm", grad_norm, &samples)?;
        // PyTorch's `clip_grad_norm_` divides by the norm plus this.
        let clip = self.plan.train.max_grad_norm.map(|most| most / (grad_norm + 1e-6));
        if let Some(clip) = clip.filter(|clip| *clip < 1.0) {
            self.gradients.scale(clip as f32)?;
        }
        let learning_rate = self.schedule.learning_rate(self.state.step);
        {
            let _time = profile::scope("adamw");
            self.optimizer.step(learning_rate, &self.gradients)?;
        }
        let tokens = batches.iter().map(tokens_of).sum();
        self.state.step = number;
        self.state.tokens += tokens;
        self.state.loss_since_log += loss;
        self.state.steps_since_log += 1;
        self.state.loss_in_all += loss;
        let total_steps = self.setup.total_steps;
        Ok(StepReport { step: number, total_steps, loss, learning_rate, grad_norm, tokens })
    }

    fn batch(&self, samples: &[usize]) -> Result<Batch> {
        let row = |&i: &usize| self.setup.rows.train.get(i).map(|e| (i as u64, e));
        let rows: Vec<(u64, &Example)> = samples.iter().filter_map(row).collect();
        let epoch = self.state.step / self.setup.loader.steps_per_epoch();
        self.setup.collator.in_epoch(epoch).batch(&rows)
    }

    /// Stops the run before an update that would spoil the weights.
    fn check_finite(
        &self,
        step: u64,
        what: &'static str,
        value: f64,
        rows: &[Vec<usize>],
    ) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        const SHOWN: usize = 8;
        let all: Vec<usize> = rows.concat();
        let named = all.iter().filter_map(|&i| self.setup.rows.train.get(i));
        let named: Vec<String> = named.take(SHOWN).map(|e| e.source.to_string()).collect();
        let more = all.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let advice = "; try a lower `learning_rate`, a warm-up, or look at these rows".to_owned();
        Err(Error::NotFinite { step, what, value, rows: named.join(", ") + &more, advice })
    }

    fn is_due(&self, cadence: Cadence) -> bool {
        let step = self.state.step;
        match cadence {
            Cadence::Never => false,
            Cadence::Epoch => {
                step.is_multiple_of(self.setup.loader.steps_per_epoch())
                    || step == self.setup.total_steps
            }
            Cadence::Every(interval) => {
                step.is_multiple_of(interval.steps(self.setup.total_steps).max(1))
            }
        }
    }

    fn epoch(&self) -> f64 {
        self.state.step as f64 / self.setup.loader.steps_per_epoch() as f64
    }

    fn log_if_due(&mut self, report: &StepReport, started: Instant) -> Result<()> {
        let first = self.plan.output.logging_first_step && report.step == 1;
        if !first && !self.is_due(self.plan.output.logging) {
            return Ok(());
        }
        let loss = self.state.loss_since_log / self.state.steps_since_log.max(1) as f64;
        self.state.loss_since_log = 0.0;
        self.state.steps_since_log = 0;
        let values = [
            ("loss", loss),
            ("grad_norm", report.grad_norm),
            ("learning_rate", report.learning_rate),
        ];
        let entry = LogEntry::new(report.step, self.epoch(), values);
        self.output.log(entry, &self.state, started.elapsed())
    }

    fn evaluate_if_due(&mut self, started: Instant) -> Result<()> {
        let at_end = self.plan.eval.do_eval && self.state.step == self.setup.total_steps;
        if at_end || !self.is_due(self.plan.eval.eval_strategy) {
            return Ok(()); // the evaluation at the end comes after the loop
        }
        self.evaluate(started).map(drop)
    }

    fn evaluate(&mut self, started: Instant) -> Result<Option<Evaluation>> {
        if self.setup.rows.eval.is_empty() {
            return Ok(None);
        }
        let begun = Instant::now();
        let size = self.plan.eval.per_device_eval_batch_size;
        let (model, collator) = (&self.setup.model, self.setup.collator);
        let found = evaluate(&*self.objective, model, collator, &self.setup.rows.eval, size)?;
        let mut values = vec![("eval_loss", found.loss)];
        let classifies = !matches!(model.model().task, Task::CausalLm | Task::Seq2SeqLm);
        values.extend(found.accuracy.filter(|_| classifies).map(|a| ("eval_accuracy", a)));
        values.push(("eval_runtime", begun.elapsed().as_secs_f64()));
        let entry = LogEntry::new(self.state.step, self.epoch(), values);
        self.output.log(entry, &self.state, started.elapsed())?;
        self.observer.evaluated(self.state.step, &found);
        self.last_evaluation = Some(found);
        Ok(Some(found))
    }

    fn save_if_due(&mut self, interrupted: bool) -> Result<()> {
        let ended = self.state.step == self.setup.total_steps;
        let at_end = ended && self.plan.output.save != Cadence::Never;
        if !interrupted && !at_end && !self.is_due(self.plan.output.save) {
            return Ok(());
        }
        let mut files = self.output.adapter_files(&self.setup)?;
        // An interrupted run promises that it can go on, so it keeps its state in any case.
        if interrupted || !self.plan.output.save_only_model {
            let log = self.output.state_at(&self.state, self.epoch());
            files.extend(self.state.files(log, &self.optimizer)?);
        }
        match self.output.save(self.state.step, &files) {
            Ok(folder) => self.observer.saved(&folder),
            // The disk may have room again at the next save; the last one has to succeed.
            Err(Error::Checkpoint(error)) if !interrupted && !ended && error.is_storage_full() => {
                self.observer
                    .remark(&format!("no checkpoint at step {}: {error}", self.state.step));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn finish(mut self, started: Instant) -> Result<Summary> {
        if self.plan.eval.do_eval {
            let begun = Instant::now();
            if let Some(found) = self.evaluate(started)? {
                self.output.eval_results(&found, begun.elapsed(), self.epoch())?;
            }
        }
        if self.plan.train.do_train {
            let files = self.output.adapter_files(&self.setup)?;
            let epoch = self.epoch();
            self.output.finish(&files, &self.state, epoch, started.elapsed())?;
        }
        Ok(self.summary(false))
    }

    fn summary(&self, interrupted: bool) -> Summary {
        Summary {
            step: self.state.step,
            total_steps: self.setup.total_steps,
            train_loss: self.state.train_loss(),
            evaluation: self.last_evaluation,
            interrupted,
        }
    }
}

fn tokens_of(batch: &Batch) -> u64 {
    let decoder = batch.decoder_input.as_ref().map_or(0, |d| d.ids.len());
    (batch.input.ids.len() + decoder) as u64
}

/// The checkpoint to go on from.
fn find(plan: &Plan, observer: &mut dyn Observer) -> Result<Option<checkpoint::Checkpoint>> {
    let folder = &plan.output.output_dir;
    if !plan.train.do_train {
        return Ok(None);
    }
    if let Resume::From(path) = &plan.train.resume {
        return Ok(Some(checkpoint::load(FS, path)?));
    }
    let search = checkpoint::find_newest(FS, folder)?;
    if plan.train.resume == Resume::Never {
        return match search.newest {
            _ if plan.output.overwrite_output_dir => clear(folder).map(|()| None),
            Some(found) => Err(Error::State {
                path: found.path,
                what: "belongs to an earlier run; resume it with `resume_from_checkpoint: true`, \
                       or start over with `overwrite_output_dir: true`"
                    .to_owned(),
            }),
            None => check_unfinished(folder).map(|()| None),
        };
    }
    for broken in &search.broken {
        observer.remark(&format!("passed over `{}`: {}", broken.path.display(), broken.damage));
    }
    if search.newest.is_none() {
        check_unfinished(folder)?;
    }
    match (&search.newest, &plan.train.resume) {
        (None, Resume::Newest) => {
            let what = "no whole checkpoint to resume from yet; begins at the start";
            observer.remark(&format!("`{}`: {what}", folder.display()));
            Ok(None)
        }
        _ => Ok(search.newest),
    }
}

/// An error where a run has ended without a checkpoint to go on from: its adapter isn't to be
/// overwritten by accident.
fn check_unfinished(folder: &Path) -> Result<()> {
    let path = folder.join(WEIGHTS_NAME);
    if !FS.exists(&path)? {
        return Ok(());
    }
    let what = "is the adapter of an earlier run that left no checkpoint; choose another \
                `output_dir`, or replace it with `overwrite_output_dir: true`";
    Err(Error::State { path, what: what.to_owned() })
}

/// Removes the checkpoints of an earlier run, oldest first.
fn clear(folder: &Path) -> Result<()> {
    let mut steps: Vec<u64> =
        FS.list(folder)?.iter().filter_map(|name| checkpoint::step_of(name.to_str()?)).collect();
    steps.sort_unstable();
    for step in steps {
        FS.remove(&checkpoint::checkpoint_path(folder, step))?;
    }
    Ok(())
}
