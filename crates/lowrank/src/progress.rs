//! What a person sees of a training run, on standard error.

use std::{path::Path, time::Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lowrank_train::{Evaluation, Observer, StepReport};

/// A line that follows the run, and lines above it for what happened.
pub(crate) struct Progress {
    bar: ProgressBar,
    begun: Instant,
    first_step: u64,
    tokens: u64,
}

impl Progress {
    /// Nothing is drawn before the run begins, and no moving line where nobody watches.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let template = "{bar:24} {pos}/{len} {msg} | {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self { bar, begun: Instant::now(), first_step: 0, tokens: 0 }
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            crate::ui::Ui::new().status(text);
        } else {
            self.bar.println(text);
        }
    }
}

impl Observer for Progress {
    fn begin(&mut self, first_step: u64, total_steps: u64) {
        self.bar.set_length(total_steps);
        self.bar.set_position(first_step);
        self.bar.reset_eta();
        (self.begun, self.first_step, self.tokens) = (Instant::now(), first_step, 0);
    }

    fn step(&mut self, report: &StepReport) {
        self.tokens += report.tokens;
        let speed = self.tokens as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        let memory = resident().map(|b| format!(" | {}", bytes(b))).unwrap_or_default();
        self.bar.set_position(report.step);
        self.bar.set_message(format!(
            "loss {:.4} | lr {:.2e} | grad {:.3} | {speed:.0} tok/s{memory}",
            report.loss, report.learning_rate, report.grad_norm
        ));
        let tenth = (report.total_steps / 10).max(1);
        if self.bar.is_hidden()
            && (report.step.is_multiple_of(tenth) || report.step == report.total_steps)
        {
            let done = report.step - self.first_step;
            let left = report.total_steps - report.step;
            let left = self.begun.elapsed().as_secs_f64() / done.max(1) as f64 * left as f64;
            let message = self.bar.message();
            let (step, total) = (report.step, report.total_steps);
            crate::ui::Ui::new().status(format_args!("{step}/{total} {message} | {left:.0}s left"));
        }
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        let accuracy = evaluation
            .accuracy
            .map(|a| format!(", accuracy {:.2} %", 100.0 * a))
            .unwrap_or_default();
        self.line(&format!("step {step}: held-out loss {:.4}{accuracy}", evaluation.loss));
    }

    fn saved(&mut self, folder: &Path) {
        self.line(&format!("saved {}", folder.display()));
    }

    fn remark(&mut self, text: &str) {
        self.line(&format!("note: {text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

/// Memory of this process that is in RAM now.
pub(crate) fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The most that it was.
pub(crate) fn peak_resident() -> Option<u64> {
    status("VmHWM:")
}

/// A line of `/proc/self/status` in bytes; `None` where there is no such file.
fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// A size for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KB", "MB", "GB"];
    let mut size = n as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    let places = usize::from(unit > 0 && size < 100.0);
    format!("{size:.places$} {}", UNITS.get(unit).unwrap_or(&"B"))
}
