//! `lowrank inspect`: what a model is made of, and what LoRA would adapt.

mod tree;

use std::path::PathBuf;

use anyhow::bail;
use lowrank_models::{DEFAULT_ADAPTER, Model, PeftModel, Task};
use lowrank_peft::{
    BaseTensor, LoraConfig, Module,
    layers::{Layer, LinearKind},
    lora_config::TargetModules,
    targets::{TargetModule, llamafactory_all},
};
use serde_json::{Value, json};

use crate::{model_source::ModelSource, ui::Ui};

/// Shows a model's modules with shapes, dtypes and parameters, and which of them LoRA adapts
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Folder with config.json and weights; or an adapter folder that names its base
    model: PathBuf,
    /// Show what this adapter adapts
    #[arg(long = "adapter", value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Show what these targets would adapt: names, a regex, `all` (LLaMA-Factory's) or `all-linear`
    /// (PEFT's); by default PEFT's for this kind of model
    #[arg(
        long,
        alias = "lora_target",
        alias = "target-modules",
        alias = "target_modules",
        value_name = "NAMES",
        value_delimiter = ',',
        conflicts_with = "adapter"
    )]
    lora_target: Vec<String>,
    /// Rank of the adapters
    #[arg(
        long,
        alias = "lora_rank",
        alias = "lora_r",
        alias = "r",
        value_name = "N",
        default_value_t = 8,
        conflicts_with = "adapter"
    )]
    lora_rank: usize,
    /// Head: causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls, question-ans or
    /// feature-extraction; by default the one in `architectures`
    #[arg(long, value_parser = task, value_name = "TASK")]
    task: Option<Task>,
    /// Print one JSON object with every module
    #[arg(long)]
    json: bool,
}

/// A task by its name on the command line.
pub(crate) fn task(name: &str) -> Result<Task, String> {
    let known = || Task::ALL.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
    Task::named(name).ok_or_else(|| format!("known: {}", known()))
}

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        let adapters: Vec<PathBuf> = self.adapter.iter().cloned().collect();
        let source = ModelSource::new(&self.model, &adapters, None)?;
        let task = self.task.map_or_else(|| source.default_task(), Ok)?;
        let mut model = source.open(task, ui)?;
        if source.adapters.is_empty() {
            let config = self.config(model.model())?;
            let added = model.add_adapter(DEFAULT_ADAPTER, &config, 0);
            // Without targets there is a model to be shown all the same.
            match added.map(|adapter| adapter.warnings.clone()) {
                Ok(warnings) => {
                    warnings.iter().for_each(|warning| ui.warning(warning));
                    model.set_adapter(&[DEFAULT_ADAPTER])?;
                }
                Err(error) if self.lora_target.is_empty() => ui.warning(error),
                Err(error) => bail!(error),
            }
        } else {
            for (name, _) in &source.adapters {
                model.set_trainable(name, true)?;
            }
        }
        let rows: Vec<Row<'_>> =
            model.model().modules.iter().map(|module| Row::of(module, &model)).collect();
        if self.json {
            return Ok(ui.result(whole(&model, &rows))?);
        }
        ui.result(headline(&model))?;
        ui.result(tree::draw(&rows, ui.colours()))?;
        ui.result(summary(&model))?;
        Ok(())
    }

    fn config(&self, model: &Model) -> anyhow::Result<LoraConfig> {
        const REGEX: [char; 11] = ['^', '$', '*', '+', '?', '(', ')', '[', ']', '|', '\\'];
        let target_modules = match self.lora_target.as_slice() {
            [] => TargetModules::Default,
            [all] if all == "all" => {
                let (model_type, task) = (model.architecture.model_type, model.task.task_type());
                let infos = model.modules.infos();
                TargetModules::names(llamafactory_all(&infos, model_type, task, &[]))
            }
            [all] if all == "all-linear" => TargetModules::AllLinear,
            [regex] if regex.contains(REGEX) => TargetModules::Pattern(regex.clone()),
            names => TargetModules::names(names.iter().cloned()),
        };
        Ok(LoraConfig {
            r: self.lora_rank,
            target_modules,
            task_type: model.task.task_type(),
            ..LoraConfig::default()
        })
    }
}

/// A module as it is shown.
pub(crate) struct Row<'a> {
    path: &'a str,
    /// Kind and base tensors of a layer; none of a container.
    layer: Option<Shown>,
}

struct Shown {
    kind: &'static str,
    shape: Vec<usize>,
    dtype: &'static str,
    parameters: usize,
    bias: bool,
    tied_to: Option<String>,
    lora: Option<TargetModule>,
    /// Trained and stored whole.
    trained: bool,
}

impl<'a> Row<'a> {
    fn of(module: &'a Module, model: &PeftModel) -> Self {
        let layer = module.layer.as_ref().map(|layer| {
            let plans = model.adapters().iter().map(|adapter| &adapter.plan);
            let lora = plans.clone().find_map(|plan| plan.targets.get(&module.path).copied());
            let within = |saved: &String| {
                let rest = module.path.strip_prefix(saved.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let mut plans = plans;
            Shown::of(layer, lora, plans.any(|plan| plan.modules_to_save.iter().any(within)))
        });
        Self { path: &module.path, layer }
    }

    fn json(&self) -> Option<Value> {
        let layer = self.layer.as_ref()?;
        let lora = layer.lora.map(
            |lora| json!({"r": lora.r, "lora_alpha": lora.lora_alpha, "scaling": lora.scaling}),
        );
        Some(json!({
            "path": self.path,
            "kind": layer.kind,
            "shape": layer.shape,
            "dtype": layer.dtype,
            "parameters": layer.parameters,
            "bias": layer.bias,
            "tied_to": layer.tied_to,
            "lora": lora,
            "trained": layer.trained,
        }))
    }
}

impl Shown {
    fn of(layer: &Layer, lora: Option<TargetModule>, trained: bool) -> Self {
        let (kind, weight, bias): (_, &BaseTensor, _) = match layer {
            Layer::Linear(l) if l.kind() == LinearKind::Conv1D => ("Conv1D", l.weight(), l.bias()),
            Layer::Linear(l) if l.kind() == LinearKind::Router => ("Router", l.weight(), l.bias()),
            Layer::Linear(l) => ("Linear", l.weight(), l.bias()),
            Layer::Embedding(e) => ("Embedding", e.weight(), None),
            Layer::Norm(n) if n.bias().is_some() => ("LayerNorm", n.weight(), n.bias()),
            Layer::Norm(n) => ("RMSNorm", n.weight(), n.bias()),
            Layer::Stack(s) => ("Experts", s.weight(), None),
            Layer::Bare(b) if b.tensor().is_buffer() => ("Buffer", b.tensor(), None),
            Layer::Bare(b) => ("Parameter", b.tensor(), None),
        };
        let own = layer.tensors().into_iter().filter(|t| t.tied_to().is_none());
        let mut shape = weight.weight().dims().to_vec();
        if weight.weight().is_transposed() {
            shape.reverse();
        }
        Self {
            kind,
            shape,
            dtype: weight.saved_dtype().as_str(),
            parameters: own.map(|t| t.weight().elem_count()).sum(),
            bias: bias.is_some(),
            tied_to: weight.tied_to().map(str::to_owned),
            lora,
            trained,
        }
    }
}

fn headline(model: &PeftModel) -> String {
    let model = model.model();
    let class = model.architecture.class_for(model.task).unwrap_or_default();
    let (folder, model_type) = (model.folder.display(), model.architecture.model_type);
    format!("{folder}: {class} ({model_type}, {})", model.task.name())
}

fn summary(model: &PeftModel) -> String {
    let inner = model.model();
    let heads: Vec<&str> = inner.architecture.tasks.iter().map(|task| task.name()).collect();
    let mut lines =
        vec![model.count_parameters().to_string(), format!("heads: {}", heads.join(", "))];
    if !inner.fresh.is_empty() {
        lines.push(format!("not in the files, start fresh: {}", inner.fresh.join(", ")));
    }
    if !inner.unused.is_empty() {
        lines.push(format!("in the files, unused: {}", inner.unused.join(", ")));
    }
    lines.join("\n")
}

fn whole(model: &PeftModel, rows: &[Row<'_>]) -> Value {
    let inner = model.model();
    let counts = model.count_parameters();
    let heads: Vec<&str> = inner.architecture.tasks.iter().map(|task| task.name()).collect();
    json!({
        "model_type": inner.architecture.model_type,
        "task": inner.task.name(),
        "tasks": heads,
        "modules": rows.iter().filter_map(Row::json).collect::<Vec<_>>(),
        "base_parameters": inner.modules.base_elements(),
        "trainable_parameters": counts.trainable,
        "all_parameters": counts.all,
        "fresh": inner.fresh,
        "unused": inner.unused,
    })
}
