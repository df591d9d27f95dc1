//! Which model a command works on: a base folder and its adapters, with the head that they are for.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use candle_core::DType;
use lowrank_data::Tokenizer;
use lowrank_models::{Architecture, Config, LabelNames, Model, OpenOptions, PeftModel, Task};
use lowrank_peft::{LoraConfig, adapter_tensors, lora_config::CONFIG_NAME};
use lowrank_train::recipe::plan::{Device, ModelPlan, WeightDtype};

use crate::ui::Ui;

/// A dtype on the command line, by transformers' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dtype {
    Float32,
    Bfloat16,
    Float16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::F32,
            Dtype::Bfloat16 => Self::BF16,
            Dtype::Float16 => Self::F16,
        }
    }
}

/// The flags that name a model.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder with config.json, weights and tokenizer; or an adapter folder that names its base
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// PEFT adapter folder; of several given all are active, and their changes add up
    #[arg(long = "adapter", value_name = "DIR")]
    pub(crate) adapters: Vec<PathBuf>,
    /// Convert the weights when they are loaded; by default they keep their dtype
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Dtype>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

impl ModelArgs {
    pub(crate) fn source(&self) -> anyhow::Result<ModelSource> {
        let source = ModelSource::new(&self.model, &self.adapters, self.dtype.map(DType::from))?;
        Ok(source.on(self.device.device))
    }
}

/// The flag that names a device.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where the model runs: cpu, cuda (the first NVIDIA GPU) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: Device,
}

/// A base model and its adapters, not opened yet.
#[derive(Debug, Clone)]
pub(crate) struct ModelSource {
    /// The base model's folder.
    pub(crate) folder: PathBuf,
    /// Adapter folders with the names that the adapters get.
    pub(crate) adapters: Vec<(String, PathBuf)>,
    dtype: Option<DType>,
    device: Device,
}

impl ModelSource {
    /// An adapter folder in the model's place stands for itself on the base that it names.
    pub(crate) fn new(
        model: &Path,
        adapters: &[PathBuf],
        dtype: Option<DType>,
    ) -> anyhow::Result<Self> {
        let is_adapter = model.join(CONFIG_NAME).is_file() && !model.join("config.json").is_file();
        let mut folders = adapters.to_vec();
        let mut folder = model.to_owned();
        if is_adapter {
            folders.insert(0, model.to_owned());
            let (config, _) = LoraConfig::from_pretrained(model)?;
            let base = config.base_model_name_or_path.filter(|base| Path::new(base).is_dir());
            folder = base.map(PathBuf::from).with_context(|| {
                let model = model.display();
                format!(
                    "`{model}` is an adapter whose base isn't a local folder; give the base \
                         with --model and this folder with --adapter"
                )
            })?;
        }
        Ok(Self { folder, adapters: named(folders), dtype, device: Device::Cpu })
    }

    /// The model of a recipe.
    pub(crate) fn of_plan(plan: &ModelPlan) -> anyhow::Result<Self> {
        if plan.rope_scaling.is_some() {
            bail!("`rope_scaling` isn't implemented here; write it into the model's config.json");
        }
        let dtype = match plan.weights {
            WeightDtype::Checkpoint => None,
            WeightDtype::F32 => Some(DType::F32),
            WeightDtype::Bf16 => Some(DType::BF16),
        };
        Ok(Self::new(&plan.model_name_or_path, &plan.adapters, dtype)?.on(plan.device))
    }

    /// The same on another device.
    pub(crate) fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// The same with another dtype.
    pub(crate) fn in_dtype(self, dtype: Option<DType>) -> Self {
        Self { dtype, ..self }
    }

    /// The base model's config and its entry in the registry.
    pub(crate) fn config(&self) -> anyhow::Result<(Config, &'static Architecture)> {
        let path = self.folder.join("config.json");
        if !path.is_file() {
            let (path, missing) = (self.folder.clone(), "config.json");
            return Err(lowrank_models::Error::NotAModel { path, missing, hint: "" }.into());
        }
        let config = Config::read(&path)?;
        let architecture = Architecture::of(&config)?;
        Ok((config, architecture))
    }

    /// The task of the first adapter that names one.
    pub(crate) fn adapters_task(&self) -> anyhow::Result<Option<Task>> {
        for (_, folder) in &self.adapters {
            if !folder.join(CONFIG_NAME).is_file() {
                continue; // loading it will say so
            }
            let (config, _) = LoraConfig::from_pretrained(folder)?;
            if let Some(task_type) = config.task_type {
                return Ok(Some(task_type.into()));
            }
        }
        Ok(None)
    }

    /// The task of the adapters, else the one whose class `architectures` names, else the
    /// architecture's first.
    pub(crate) fn default_task(&self) -> anyhow::Result<Task> {
        if let Some(task) = self.adapters_task()? {
            return Ok(task);
        }
        let (config, architecture) = self.config()?;
        let classes = config.words("architectures")?.unwrap_or_default();
        let named =
            |task: &&Task| classes.iter().any(|class| architecture.is_class_for(**task, class));
        // One class may serve two tasks, of which the language model within decides.
        let default = architecture.default_task(&config)?;
        let tasks = std::iter::once(&default).chain(architecture.tasks);
        Ok(tasks.into_iter().find(named).copied().unwrap_or(default))
    }

    /// Label names beside an adapter; where there are none, as many as its head has rows.
    pub(crate) fn labels(&self) -> anyhow::Result<Option<LabelNames>> {
        for (_, folder) in &self.adapters {
            if let Some(labels) = LabelNames::read(folder)? {
                return Ok(Some(labels));
            }
        }
        let (config, _) = self.config()?;
        for (_, folder) in &self.adapters {
            let rows = head_rows(folder)?;
            if let Some(rows) = rows.filter(|rows| config.num_labels().ok() != Some(*rows)) {
                let names = (0..rows).map(|i| format!("LABEL_{i}")).collect();
                return Ok(Some(LabelNames { names, problem_type: None }));
            }
        }
        Ok(None)
    }

    /// Opens the model with all adapters on it, active and frozen. What is odd about them is said
    /// on standard error.
    pub(crate) fn open(&self, task: Task, ui: Ui) -> anyhow::Result<PeftModel> {
        let labels = match task {
            Task::SeqCls | Task::TokenCls => self.labels()?,
            _ => None,
        };
        let options = OpenOptions {
            task: Some(task),
            dtype: self.dtype,
            device: Some(self.device.open()?),
            problem_type: labels.as_ref().and_then(|l| l.problem_type),
            labels: labels.map(|l| l.names),
            ..OpenOptions::default()
        };
        let mut model = PeftModel::new(Model::open(&self.folder, &options)?);
        for (name, folder) in &self.adapters {
            let adapter = model.load_adapter(name, folder)?;
            for warning in &adapter.warnings {
                ui.warning(format_args!("{}: {warning}", folder.display()));
            }
        }
        let names: Vec<&str> = self.adapters.iter().map(|(name, _)| name.as_str()).collect();
        model.set_adapter(&names)?;
        warn_of_fresh_head(&model, task, ui);
        Ok(model)
    }

    /// The folder with the tokenizer: the base model's, or that of the first adapter that has one.
    pub(crate) fn tokenizer_folder(&self) -> &Path {
        let mut folders = std::iter::once(&self.folder).chain(self.adapters.iter().map(|(_, f)| f));
        let found = folders.find(|folder| Tokenizer::is_in(folder));
        found.unwrap_or(&self.folder)
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        Ok(Tokenizer::open(self.tokenizer_folder())?)
    }

    /// Whether there is one.
    pub(crate) fn has_tokenizer(&self) -> bool {
        Tokenizer::is_in(self.tokenizer_folder())
    }
}

/// A head that neither the model nor an adapter has numbers for answers at random.
fn warn_of_fresh_head(model: &PeftModel, task: Task, ui: Ui) {
    let trained = |name: &str| {
        let tensor = model.model().modules.tensors().find(|t| t.name() == name);
        model.active().iter().any(|a| tensor.is_some_and(|t| t.copy_of(a).is_some()))
    };
    let fresh: Vec<&str> =
        model.model().fresh.iter().map(String::as_str).filter(|name| !trained(name)).collect();
    if !fresh.is_empty() {
        let folder = model.model().folder.display();
        ui.warning(format_args!(
            "`{folder}` has no trained head for the task `{}`: {} are random",
            task.name(),
            fresh.join(", ")
        ));
    }
}

/// Adapters by the last part of their folders' names; a number tells equal ones apart.
fn named(folders: Vec<PathBuf>) -> Vec<(String, PathBuf)> {
    let mut named: Vec<(String, PathBuf)> = Vec::with_capacity(folders.len());
    for folder in folders {
        let last = folder.file_name().map(|n| n.to_string_lossy().into_owned());
        let plain = last.unwrap_or_else(|| "adapter".to_owned());
        let mut name = plain.clone();
        let mut number = 2;
        while named.iter().any(|(own, _)| *own == name) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        named.push((name, folder));
    }
    named
}

/// Classes of the classification head that an adapter brings.
fn head_rows(folder: &Path) -> anyhow::Result<Option<usize>> {
    let (_, tensors) = adapter_tensors(folder)?;
    let heads = ["score.weight", "classifier.weight"];
    let head = heads.iter().find_map(|head| tensors.get(&format!("base_model.model.{head}")));
    Ok(head.and_then(|tensor| tensor.dims().first().copied()))
}
