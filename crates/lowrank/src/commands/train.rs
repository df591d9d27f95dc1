//! `lowrank train`: runs a recipe.

mod profile;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use lowrank_autograd::gpu_memory;
use lowrank_data::DateTime;
use lowrank_train::{
    Observer, Setup, Summary, Trainer,
    recipe::{Plan, Recipe, keys, plan::Stage},
};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

use crate::{
    progress::{Progress, bytes, peak_resident},
    ui::Ui,
};

/// Trains what a recipe says; LLaMA-Factory's recipes run unchanged
#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    /// YAML or JSON recipe
    #[arg(required_unless_present = "keys")]
    recipe: Option<PathBuf>,
    /// Settings that replace the recipe's: `key=value`, `--key value` or `--key=value`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    overrides: Vec<String>,
    /// List every key that a recipe may have, and exit
    #[arg(long)]
    keys: bool,
    /// Print at the end where the steps' time went, by operation
    #[arg(long)]
    profile: bool,
}

/// A run that wants to know who hears how it goes.
type Run<'a> = Box<dyn FnOnce(&mut dyn Observer) -> anyhow::Result<Summary> + 'a>;

/// A run that was asked to stop; its state is saved.
#[derive(Debug, thiserror::Error)]
#[error(
    "stopped after step {} of {}; a checkpoint is saved, and the same recipe goes on from there",
    .0.step, .0.total_steps
)]
pub(crate) struct Interrupted(Summary);

impl Train {
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        // Behind an override everything is read as one.
        let flags = self.overrides.extract_if(.., |word| word == "--profile").count();
        if self.keys {
            return Ok(Ui::new().result(keys::help_text().trim_end())?);
        }
        let recipe = self.recipe.context("no recipe")?;
        let plan = Recipe::read(&recipe, &self.overrides)?.resolve()?;
        let summary = match self.profile || flags > 0 {
            true => train_with(&plan, profile::run)?,
            false => train(&plan)?,
        };
        Ui::new().result(plan.output.output_dir.display())?;
        match summary.interrupted {
            true => Err(Interrupted(summary).into()),
            false => Ok(()),
        }
    }
}

/// Runs a plan, showing it first and its progress on the way.
pub(crate) fn train(plan: &Plan) -> anyhow::Result<Summary> {
    train_with(plan, |progress, run| run(progress))
}

/// [`train`] with an observer around its progress: `observe` calls what it is given, the run.
fn train_with(
    plan: &Plan,
    observe: impl FnOnce(&mut Progress, Run<'_>) -> anyhow::Result<Summary>,
) -> anyhow::Result<Summary> {
    for notice in &plan.notices {
        Ui::new().status(format_args!("note: {notice}"));
    }
    let setup = Setup::new(plan, now())?;
    show(plan, &setup);
    let stop = stop_on_signals()?;
    let mut progress = Progress::new();
    let run = |observer: &mut dyn Observer| Ok(Trainer::new(plan, setup, observer, &stop)?.run()?);
    let summary = observe(&mut progress, Box::new(run))?;
    drop(progress);
    if !summary.interrupted {
        let peak = peak_resident().map(|b| format!(", peak memory {}", bytes(b)));
        let on_gpu = gpu_memory().map(|[used, kept]| {
            format!(", on the GPU {} ({} with what was kept free)", bytes(used), bytes(kept))
        });
        let (step, loss) = (summary.step, summary.train_loss);
        Ui::new().status(format_args!(
            "done: {step} steps, mean training loss {loss:.4}{}{}",
            peak.unwrap_or_default(),
            on_gpu.unwrap_or_default()
        ));
    }
    Ok(summary)
}

/// The time now, for templates that write the date.
pub(crate) fn now() -> DateTime {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    DateTime::from_unix(i64::try_from(seconds).unwrap_or_default())
}

/// What is about to happen.
fn show(plan: &Plan, setup: &Setup) {
    for remark in &setup.remarks {
        Ui::new().status(format_args!("note: {remark}"));
    }
    let model = setup.model.model();
    let counts = setup.model.count_parameters();
    let weights: u64 = model
        .modules
        .tensors()
        .filter(|t| t.tied_to().is_none())
        .map(|t| (t.weight().elem_count() * t.weight().dtype().size_in_bytes()) as u64)
        .sum();
    // Values, gradients and both moments.
    let training = 4 * 4 * counts.trainable as u64;
    let targets = setup.model.adapters().iter().flat_map(|a| a.plan.targets.keys());
    let rows = &setup.rows;
    let tokens: usize = rows.train.iter().map(|e| e.input_ids.len()).sum();
    let trained: usize = rows.train.iter().map(lowrank_data::Example::targets).sum();
    // Of the words that may be hidden only some are.
    let hidden = match plan.stage {
        Stage::Sft => 1.0,
        Stage::Pt { mlm_probability } => mlm_probability,
    };
    let lines = [
        format!(
            "model    {} ({}, {})",
            model.folder.display(),
            model.architecture.model_type,
            model.task.name()
        ),
        format!("adapter  {counts}"),
        format!("targets  {}", collapse(targets.map(String::as_str))),
        format!(
            "data     {} rows, {tokens} tokens, {:.0} % of them trained; {} rows held out",
            rows.train.len(),
            100.0 * hidden * trained as f64 / tokens.max(1) as f64,
            rows.eval.len()
        ),
        format!(
            "run      {} steps of {} × {} rows, learning rate {:e}, {}",
            setup.total_steps,
            plan.train.gradient_accumulation_steps,
            plan.train.per_device_train_batch_size,
            plan.train.learning_rate,
            plan.train.lr_scheduler
        ),
        format!(
            "memory   {} weights, {} for what trains, and the activations of a batch",
            bytes(weights),
            bytes(training)
        ),
        format!("output   {}", plan.output.output_dir.display()),
    ];
    lines.iter().for_each(|line| Ui::new().status(line));
}

/// Module paths with numbers that only count blocks left out.
fn collapse<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    let mut patterns: Vec<(String, usize)> = Vec::new();
    for path in paths {
        let parts = path.split('.').map(|p| if p.parse::<u32>().is_ok() { "*" } else { p });
        let pattern = parts.collect::<Vec<_>>().join(".");
        match patterns.iter_mut().find(|(own, _)| *own == pattern) {
            Some((_, count)) => *count += 1,
            None => patterns.push((pattern, 1)),
        }
    }
    let shown = patterns.iter().map(|(pattern, count)| format!("{pattern} ×{count}"));
    shown.collect::<Vec<_>>().join(", ")
}

/// Ctrl-C and SIGTERM end the run after its step; a second one ends the program at once.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // A file-size limit is reported by the write that meets it.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(stop)
}
