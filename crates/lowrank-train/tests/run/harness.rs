//! Recipes for the tests, and what is asked of the runs that they make.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::{Device, Tensor};
use lowrank_data::DateTime;
use lowrank_train::{
    Error, Evaluation, Observer, Setup, StepReport, Summary, Trainer,
    recipe::{Plan, Recipe},
};
use tempfile::TempDir;

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run").join(name)
}

type Result<T> = std::result::Result<T, Box<Error>>;

/// A folder for a run, with the recipe that all tests begin with.
pub(crate) struct Case {
    folder: TempDir,
    model: PathBuf,
    data: PathBuf,
    keys: Vec<String>,
}

impl Case {
    /// The Llama of this repository on its novel.
    pub(crate) fn novel(keys: &[&str]) -> Self {
        let model = repository().join("assets/stories260K");
        let data = repository().join("assets/pride_and_prejudice/rows.jsonl");
        Self::new(model, data, keys)
    }

    /// A tiny model with a tokenizer of the words `w0` to `w31`, on rows of its own.
    pub(crate) fn tiny(model: &Path, tokenizer: &str, rows: &str, keys: &[&str]) -> Self {
        let mut case = Self::new(PathBuf::new(), PathBuf::new(), keys);
        case.model = case.folder.path().join("model");
        fs::create_dir(&case.model).unwrap();
        let tokenizer = fixture(tokenizer);
        for (from, file) in [
            (model, "config.json"),
            (model, "model.safetensors"),
            (&tokenizer, "tokenizer.json"),
            (&tokenizer, "tokenizer_config.json"),
        ] {
            fs::copy(from.join(file), case.model.join(file)).unwrap();
        }
        let pictures = "preprocessor_config.json";
        if model.join(pictures).exists() {
            fs::copy(model.join(pictures), case.model.join(pictures)).unwrap();
        }
        case.with_rows(rows)
    }

    fn new(model: PathBuf, data: PathBuf, keys: &[&str]) -> Self {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self { folder: tempfile::tempdir().unwrap(), model, data, keys }
    }

    /// The same with other rows.
    pub(crate) fn with_rows(mut self, rows: &str) -> Self {
        self.data = self.folder.path().join("rows.jsonl");
        fs::write(&self.data, rows).unwrap();
        self
    }

    /// The same on the rows of a file.
    pub(crate) fn with_file(mut self, file: PathBuf) -> Self {
        self.data = file;
        self
    }

    /// The same with another value of a key.
    pub(crate) fn with(mut self, key: &str) -> Self {
        set(&mut self.keys, key);
        self
    }

    /// The file of the rows, which is a dataset's name as well.
    pub(crate) fn rows(&self) -> String {
        self.data.display().to_string()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The plan of a run into the folder `out`, with `more` keys over the case's own.
    pub(crate) fn plan(&self, out: &str, more: &[&str]) -> Plan {
        let text = format!(
            "model_name_or_path: {}\nstage: sft\ndo_train: true\nfinetuning_type: lora\n\
             lora_rank: 4\ndataset: {}\n\
             cutoff_len: 64\nlearning_rate: 5.0e-3\nreport_to: none\noutput_dir: {}\n",
            self.model.display(),
            self.rows(),
            self.path(out).display()
        );
        let mut overrides = self.keys.clone();
        more.iter().for_each(|key| set(&mut overrides, key));
        let recipe = Recipe::parse(&text, "recipe.yaml", &overrides);
        recipe.and_then(|recipe| recipe.resolve()).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn setup(&self, more: &[&str]) -> Setup {
        setup(&self.plan("out", more)).unwrap()
    }

    /// A whole run.
    pub(crate) fn run(&self, out: &str, more: &[&str]) -> (Summary, Heard) {
        let (result, heard) = self.try_run(out, more, None);
        (result.unwrap_or_else(|e| panic!("{e}")), heard)
    }

    /// A run that is asked to stop while it makes the step `stop_at`.
    pub(crate) fn try_run(
        &self,
        out: &str,
        more: &[&str],
        stop_at: Option<u64>,
    ) -> (Result<Summary>, Heard) {
        let plan = self.plan(out, more);
        let stop = AtomicBool::new(false);
        let mut listener = Listener { heard: Heard::default(), stop: &stop, stop_at };
        let result = train(&plan, &mut listener, &stop);
        (result, listener.heard)
    }

    /// The message that a run ends with.
    pub(crate) fn error(&self, out: &str, more: &[&str]) -> String {
        match self.try_run(out, more, None).0 {
            Ok(summary) => panic!("the run went through: {summary:?}"),
            Err(error) => error.to_string(),
        }
    }

    /// The tensors of the adapter in a folder.
    pub(crate) fn adapter(&self, folder: &str) -> BTreeMap<String, Tensor> {
        tensors(&self.path(folder).join("adapter_model.safetensors"))
    }

    /// The names of a folder's checkpoints, by step.
    pub(crate) fn checkpoints(&self, out: &str) -> Vec<u64> {
        let names = fs::read_dir(self.path(out)).unwrap().map(|e| e.unwrap().file_name());
        let step = |name: std::ffi::OsString| {
            name.to_str().unwrap().strip_prefix("checkpoint-")?.parse().ok()
        };
        let mut steps: Vec<u64> = names.filter_map(step).collect();
        steps.sort_unstable();
        steps
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    pub(crate) fn json(&self, file: &str) -> serde_json::Value {
        serde_json::from_slice(&self.read(file)).unwrap()
    }
}

/// Sets a key whether or not it is there.
fn set(keys: &mut Vec<String>, key: &str) {
    let name = |key: &str| key.split('=').next().map(str::to_owned);
    keys.retain(|own| name(own) != name(key));
    keys.push(key.to_owned());
}

fn train(plan: &Plan, listener: &mut Listener<'_>, stop: &AtomicBool) -> Result<Summary> {
    Ok(Trainer::new(plan, setup(plan)?, listener, stop)?.run()?)
}

pub(crate) fn setup(plan: &Plan) -> Result<Setup> {
    Ok(Setup::new(plan, DateTime::from_unix(0))?)
}

pub(crate) fn tensors(file: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails unless two sets of tensors have the same names and each pair differs by at most
/// `tolerance` of the largest value in it.
pub(crate) fn assert_close(
    found: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
    tolerance: f32,
) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in expected {
        let (found, expected) = (values(&found[name]), values(tensor));
        assert_eq!(found.len(), expected.len(), "{name}");
        let size = expected.iter().fold(1e-12, |size: f32, v| size.max(v.abs()));
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            let off = (a - b).abs() / size;
            assert!(off <= tolerance, "{name}[{i}]: {a} instead of {b}, off by {off:e}");
        }
    }
}

/// Fails unless the numbers agree to `tolerance` of themselves.
pub(crate) fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let off = (a - b).abs() / b.abs().max(1e-12);
        assert!(off <= tolerance, "number {i}: {a} instead of {b}, off by {off:e}");
    }
}

/// What an observer of a run heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) first_step: u64,
    pub(crate) steps: Vec<StepReport>,
    pub(crate) evaluated: Vec<(u64, Evaluation)>,
    pub(crate) saved: Vec<PathBuf>,
    pub(crate) remarks: Vec<String>,
}

impl Heard {
    pub(crate) fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.loss).collect()
    }

    pub(crate) fn grad_norms(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.grad_norm).collect()
    }

    pub(crate) fn remarked(&self, part: &str) -> bool {
        self.remarks.iter().any(|remark| remark.contains(part))
    }
}

struct Listener<'a> {
    heard: Heard,
    stop: &'a AtomicBool,
    stop_at: Option<u64>,
}

impl Observer for Listener<'_> {
    fn begin(&mut self, first_step: u64, _: u64) {
        self.heard.first_step = first_step;
    }

    fn step(&mut self, report: &StepReport) {
        self.heard.steps.push(*report);
        if self.stop_at == Some(report.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.heard.evaluated.push((step, *evaluation));
    }

    fn saved(&mut self, folder: &Path) {
        self.heard.saved.push(folder.to_owned());
    }

    fn remark(&mut self, text: &str) {
        self.heard.remarks.push(text.to_owned());
    }
}
