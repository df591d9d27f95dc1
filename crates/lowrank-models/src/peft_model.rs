//! A model with adapters, in PEFT's words: `get_peft_model`, `load_adapter`, `set_adapter`,
//! `merge_and_unload`. Reference: PEFT 0.21 `peft/peft_model.py`.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use candle_core::Tensor;
use lowrank_autograd::Parameter;
use lowrank_peft::{Adapter, BaseModel, Error as PeftError, LoraConfig, Pass, Result};

use crate::{Head, Model, Task};

/// PEFT's name for an adapter that was given none.
pub const DEFAULT_ADAPTER: &str = "default";

/// A model and the adapters that it carries.
#[derive(Debug)]
pub struct PeftModel {
    model: Model,
    adapters: Vec<Adapter>,
    active: Arc<[String]>,
    merged: bool,
}

/// Attaches a fresh adapter named `default` to a model; nothing else trains. `seed` decides its
/// initial values.
///
/// # Errors
/// When the config doesn't fit the model or isn't implemented.
pub fn get_peft_model(model: Model, config: &LoraConfig, seed: u64) -> Result<PeftModel> {
    let mut model = PeftModel::new(model);
    model.add_adapter(DEFAULT_ADAPTER, config, seed)?;
    model.set_adapter(&[DEFAULT_ADAPTER])?;
    Ok(model)
}

/// How much of a model trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCount {
    /// Elements that train.
    pub trainable: usize,
    /// All distinct elements, adapters included.
    pub all: usize,
}

impl std::fmt::Display for ParameterCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = 100.0 * self.trainable as f64 / self.all.max(1) as f64;
        let (trainable, all) = (grouped(self.trainable), grouped(self.all));
        write!(f, "trainable params: {trainable} || all params: {all} || trainable%: {share:.4}")
    }
}

/// A number with a comma between thousands.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let mut out = digits.get(..first).unwrap_or_default().to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(group.iter().map(|&b| char::from(b)));
    }
    out
}

impl PeftModel {
    /// A model without adapters.
    pub fn new(model: Model) -> Self {
        Self { model, adapters: Vec::new(), active: Arc::new([]), merged: false }
    }

    /// Opens an adapter folder on a model, frozen and active, as PEFT's `from_pretrained` does.
    ///
    /// # Errors
    /// When the folder isn't an adapter of this model.
    pub fn from_pretrained(model: Model, folder: &Path) -> Result<Self> {
        let mut model = Self::new(model);
        model.load_adapter(DEFAULT_ADAPTER, folder)?;
        model.set_adapter(&[DEFAULT_ADAPTER])?;
        Ok(model)
    }

    /// The model below.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The adapters, in the order in which they came.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// An adapter by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn adapter(&self, name: &str) -> Result<&Adapter> {
        self.adapters.iter().find(|a| a.name == name).ok_or_else(|| self.no_such(name))
    }

    fn no_such(&self, name: &str) -> PeftError {
        let known: Vec<&str> = self.adapters.iter().map(|a| a.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        PeftError::NoSuchAdapter { name: name.to_owned(), known }
    }

    /// Names of the active adapters.
    pub fn active(&self) -> &[String] {
        &self.active
    }

    /// Attaches a fresh adapter, inactive until [`PeftModel::set_adapter`].
    ///
    /// # Errors
    /// When the name is taken, or the config is wrong for this model.
    pub fn add_adapter(&mut self, name: &str, config: &LoraConfig, seed: u64) -> Result<&Adapter> {
        self.check_free(name)?;
        let adapter = self.with_base(|base| Adapter::create(name, config, base, seed))?;
        self.insert(adapter)
    }

    /// Attaches the adapter in a folder, frozen and inactive.
    ///
    /// # Errors
    /// When the name is taken, or the folder isn't an adapter of this model.
    pub fn load_adapter(&mut self, name: &str, folder: &Path) -> Result<&Adapter> {
        self.check_free(name)?;
        let adapter = self.with_base(|base| Adapter::load(name, folder, base))?;
        self.insert(adapter)
    }

    fn check_free(&self, name: &str) -> Result<()> {
        match self.adapters.iter().any(|a| a.name == name) {
            true => Err(PeftError::NameTaken { name: name.to_owned() }),
            false => Ok(()),
        }
    }

    fn insert(&mut self, adapter: Adapter) -> Result<&Adapter> {
        let other = self.adapters.iter().find(|a| a.trains_biases());
        if let Some(other) = other.filter(|_| adapter.trains_biases()) {
            let (first, second) = (other.name.clone(), adapter.name.clone());
            adapter.detach(&self.model.modules);
            return Err(PeftError::TwoBiases { first, second });
        }
        let name = adapter.name.clone();
        self.adapters.push(adapter);
        self.adapter(&name)
    }

    fn with_base<R>(&self, f: impl FnOnce(BaseModel<'_>) -> R) -> R {
        let path_of = |name: &str| name.strip_suffix(".weight").map(str::to_owned);
        let input = path_of(self.model.network().table().weight().name());
        let language_model =
            matches!(self.model.task, Task::CausalLm | Task::Seq2SeqLm | Task::MaskedLm);
        let output = match self.model.head() {
            Head::Tokens(head) if language_model => path_of(head.linear.weight().name()),
            _ => None,
        };
        f(BaseModel {
            modules: &self.model.modules,
            model_type: self.model.architecture.model_type,
            input_embedding: input.as_deref(),
            output_embedding: output.as_deref(),
        })
    }

    /// Activates these adapters and no others; takes merges back first.
    ///
    /// # Errors
    /// When there is none of such a name.
    pub fn set_adapter(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            self.adapter(name)?;
        }
        self.unmerge_adapter();
        self.active = names.iter().map(|n| (*n).to_owned()).collect();
        Ok(())
    }

    /// Takes an adapter off the model.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn delete_adapter(&mut self, name: &str) -> Result<()> {
        self.adapter(name)?.detach(&self.model.modules);
        self.adapters.retain(|a| a.name != name);
        self.active = self.active.iter().filter(|a| *a != name).cloned().collect();
        Ok(())
    }

    /// Lets an adapter train, or freezes it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn set_trainable(&self, name: &str, trainable: bool) -> Result<()> {
        self.adapter(name)?.set_trainable(&self.model.modules, trainable);
        Ok(())
    }

    /// What the active adapters train, in the model's order.
    pub fn trainable(&self) -> Vec<Parameter> {
        let all = self.active.iter().flat_map(|name| self.model.modules.parameters_of(name));
        all.filter(Parameter::trainable).collect()
    }

    /// Writes PEFT's line about how much of the model trains.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn print_trainable_parameters(&self, to: &mut impl io::Write) -> io::Result<()> {
        writeln!(to, "{}", self.count_parameters())
    }

    /// How much of the model trains, and how large it is.
    pub fn count_parameters(&self) -> ParameterCount {
        let size = |p: &Parameter| p.data().elem_count();
        let adapters = self.adapters.iter().flat_map(|a| a.parameters(&self.model.modules));
        ParameterCount {
            trainable: self.trainable().iter().map(size).sum(),
            all: self.model.modules.base_elements() + adapters.map(|p| size(&p)).sum::<usize>(),
        }
    }

    /// PEFT's `get_peft_model_state_dict`: an adapter's tensors by their names in its file.
    ///
    /// # Errors
    /// When there is no adapter of that name.
    pub fn get_peft_model_state_dict(&self, name: &str) -> Result<BTreeMap<String, Tensor>> {
        self.adapter(name)?.state_dict(&self.model.modules)
    }

    /// An adapter's files by name, as PEFT's `save_pretrained` writes them.
    ///
    /// # Errors
    /// When there is no adapter of that name.
    pub fn adapter_files(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let base = self.model.folder.display().to_string();
        self.adapter(name)?.files(&self.model.modules, &base)
    }

    /// Adds the active adapters to the base weights, in place.
    ///
    /// # Errors
    /// When one can't be merged; nothing is merged then.
    pub fn merge_adapter(&mut self) -> Result<()> {
        for name in self.active.iter() {
            if let Err(error) = self.adapter(name)?.merge(&self.model.modules) {
                lowrank_peft::unmerge(&self.model.modules);
                return Err(error);
            }
        }
        self.merged = true;
        Ok(())
    }

    /// Takes merges back; the base weights are exactly what they were.
    pub fn unmerge_adapter(&mut self) {
        if std::mem::take(&mut self.merged) {
            lowrank_peft::unmerge(&self.model.modules);
        }
    }

    /// The base model with the active adapters merged in, and nothing else left of them.
    ///
    /// # Errors
    /// When one can't be merged.
    pub fn merge_and_unload(mut self) -> Result<Model> {
        self.merge_adapter()?;
        lowrank_peft::keep_merge(&self.model.modules);
        self.adapters.iter().for_each(|a| a.detach(&self.model.modules));
        Ok(self.model)
    }

    /// A pass without gradients through the active adapters.
    pub fn inference(&self) -> Pass {
        Pass::inference(Arc::clone(&self.active))
    }

    /// A pass without gradients through the base model alone: PEFT's `disable_adapter`.
    pub fn disabled(&self) -> Pass {
        Pass::inference(Arc::new([]))
    }

    /// A pass that records what the active adapters need to train.
    pub fn recording(&self) -> Pass {
        Pass::recording(Arc::clone(&self.active))
    }
}
