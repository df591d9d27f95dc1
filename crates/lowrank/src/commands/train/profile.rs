//! `lowrank train --profile`: where the time of a run's steps went, and their memory.

use std::{cmp::Reverse, collections::BTreeMap, path::Path, time::Duration};

use lowrank_autograd::profile::{self, Measured, Times};
use lowrank_train::{Evaluation, Observer, STEP, StepReport, Summary};

use super::Run;
use crate::{
    memory::page_faults,
    progress::{Progress, bytes, peak_resident},
    ui::Ui,
};

/// Runs with a clock on every operation and prints the table.
pub(super) fn run(progress: &mut Progress, run: Run<'_>) -> anyhow::Result<Summary> {
    let mut profiler = Profiler { progress, last_faults: None, steps: Vec::new() };
    profile::set_enabled(true);
    let summary = run(&mut profiler);
    profile::set_enabled(false);
    profiler.lines(&profile::take()).iter().for_each(|line| Ui::new().status(line));
    summary
}

/// Hands everything on to the progress line, and keeps count.
struct Profiler<'a> {
    progress: &'a mut Progress,
    last_faults: Option<u64>,
    steps: Vec<Step>,
}

/// Memory of one step.
#[derive(Clone, Copy, Debug)]
struct Step {
    faults: u64,
    peak: u64,
}

impl Observer for Profiler<'_> {
    fn begin(&mut self, first_step: u64, total_steps: u64) {
        self.last_faults = page_faults();
        self.progress.begin(first_step, total_steps);
    }

    fn step(&mut self, report: &StepReport) {
        let faults = page_faults();
        let fresh = faults.zip(self.last_faults).map_or(0, |(now, before)| now - before);
        self.steps.push(Step { faults: fresh, peak: peak_resident().unwrap_or_default() });
        // The first step reads the weights from the disk and finds its memory: not one of many.
        if self.steps.len() == 1 && report.step < report.total_steps {
            profile::take();
        }
        self.last_faults = faults;
        self.progress.step(report);
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.progress.evaluated(step, evaluation);
    }

    fn saved(&mut self, folder: &Path) {
        self.progress.saved(folder);
    }

    fn remark(&mut self, text: &str) {
        self.progress.remark(text);
    }
}

impl Profiler<'_> {
    /// The table: milliseconds and calls of a step, the longest first.
    fn lines(&self, times: &BTreeMap<&str, Times>) -> Vec<String> {
        let steps = times.get(STEP).map_or(0, |t| t.forward.calls).max(1);
        let spent = |t: &Times| t.forward.time + t.backward.time;
        let whole: Duration = times.values().map(spent).sum();
        let mut rows: Vec<_> = times.iter().filter(|(name, _)| **name != STEP).collect();
        rows.sort_by_key(|(_, t)| Reverse(spent(t)));
        let mut lines = vec![
            format!("profile of {steps} steps, {:.1} ms each", milliseconds(whole, steps)),
            format!("{:28} {:>16} {:>16} {:>8}", "operation", "forward", "backward", "share"),
        ];
        let row = |name: &str, t: &Times| {
            let cell = |m: &Measured| match m.calls {
                0 => format!("{:>16}", "-"),
                _ => format!("{:>9.2} ms{:>4}", milliseconds(m.time, steps), m.calls / steps),
            };
            let share = 100.0 * spent(t).as_secs_f64() / whole.as_secs_f64().max(1e-9);
            format!("{name:28} {} {} {share:>6.1} %", cell(&t.forward), cell(&t.backward))
        };
        lines.extend(rows.iter().map(|(name, t)| row(name, t)));
        lines.extend(times.get(STEP).map(|t| row("outside operations", t)));
        lines.extend(self.memory());
        lines
    }

    fn memory(&self) -> Option<String> {
        let (first, last) = (self.steps.first()?, self.steps.last()?);
        let mut later: Vec<u64> = self.steps.iter().skip(1).map(|s| s.faults).collect();
        later.sort_unstable();
        let median = later.get(later.len() / 2).map(|n| format!(", {n} in a later one (median)"));
        Some(format!(
            "page faults: {} in the first step{}; peak memory {} after it, {} in the end",
            first.faults,
            median.unwrap_or_default(),
            bytes(first.peak),
            bytes(last.peak)
        ))
    }
}

fn milliseconds(time: Duration, steps: u64) -> f64 {
    1e3 * time.as_secs_f64() / steps as f64
}
