//! A small run through the program, and what is in its folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

/// How often a test looks whether something has happened, and how many times at most.
const GLANCE: Duration = Duration::from_micros(300);
const GLANCES: usize = 200_000;

/// Runs of one recipe, each into a folder of its own.
pub(crate) struct Case {
    folder: TempDir,
    keys: Vec<String>,
}

impl Case {
    pub(crate) fn new(keys: &[&str]) -> Self {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
        let recipe = format!(
            "model_name_or_path: {}\ndataset: {}\n\
             stage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 4\nlora_dropout: 0.1\n\
             lora_target: q_proj,v_proj\nmax_samples: 60\ncutoff_len: 64\nlearning_rate: 0.01\n\
             lr_scheduler_type: cosine\nreport_to: none\nlogging_steps: 1\n\
             per_device_train_batch_size: 2\ngradient_accumulation_steps: 3\n",
            assets.join("stories260K").display(),
            assets.join("pride_and_prejudice/rows.jsonl").display(),
        );
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.yaml"), recipe).unwrap();
        Self { folder, keys: keys.iter().map(|key| (*key).to_owned()).collect() }
    }

    /// The folder of a run.
    pub(crate) fn out(&self, out: &str) -> PathBuf {
        self.folder.path().join(out)
    }

    /// The command of a run.
    pub(crate) fn command(&self, out: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        command.arg("train").arg(self.folder.path().join("recipe.yaml")).args(&self.keys);
        command.arg(format!("output_dir={}", self.out(out).display()));
        command
    }

    /// Runs to the end and gives the exit code and what was said on standard error.
    pub(crate) fn run(&self, out: &str) -> (Option<i32>, String) {
        let output = self.command(out).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a run.
    pub(crate) fn start(&self, out: &str) -> Running {
        let mut command = self.command(out);
        Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// The losses in a run's log, with their steps.
    pub(crate) fn losses(&self, out: &str) -> Vec<(u64, f64)> {
        let log = fs::read_to_string(self.out(out).join("trainer_log.jsonl")).unwrap_or_default();
        let whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let entry = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["current_steps"].as_u64().unwrap(), line["loss"].as_f64().unwrap())
        };
        whole.map(entry).collect()
    }

    /// The last step in a run's log.
    pub(crate) fn logged_step(&self, out: &str) -> u64 {
        self.losses(out).last().map_or(0, |(step, _)| *step)
    }
}

/// A run that is on.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Waits until something is so; false if the run ended before.
    pub(crate) fn wait_until(&mut self, is_so: impl Fn() -> bool) -> bool {
        for _ in 0..GLANCES {
            if is_so() {
                return true;
            }
            if self.0.try_wait().unwrap().is_some() {
                return false;
            }
            thread::sleep(GLANCE);
        }
        panic!("nothing happens");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed test leaves no process behind; one that has ended can't be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails unless two runs left the same files and log.
pub(crate) fn assert_same(case: &Case, found: &str, expected: &str, steps: u64) {
    let checkpoint = format!("checkpoint-{steps}");
    for file in [
        "adapter_model.safetensors".to_owned(),
        format!("{checkpoint}/adapter_model.safetensors"),
        format!("{checkpoint}/optimizer.safetensors"),
        format!("{checkpoint}/run_state.json"),
    ] {
        let [found, expected] = [found, expected].map(|out| {
            let path = case.out(out).join(&file);
            fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        });
        assert!(found == expected, "{file} differs");
    }
    assert_eq!(case.losses(expected).len() as u64, steps);
    assert_eq!(case.losses(found), case.losses(expected));
}
