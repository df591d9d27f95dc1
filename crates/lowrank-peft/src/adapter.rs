//! An adapter on a model: made fresh or read from a folder, and written again.
//!
//! Reference: PEFT 0.21 `peft/utils/save_and_load.py`. Unlike there, an adapter whose tensors
//! don't all find their place is an error that lists them.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::{DType, Tensor};
use lowrank_autograd::{Key, Parameter, Weight, random};

use crate::{
    BaseTensor, CopyReason, Error, Modules, Result, WEIGHTS_NAME,
    adapter_file::adapter_tensors,
    adapter_names::TensorName,
    expert_tensors::stack_experts,
    layers::Layer,
    lora_config::{AdapterUse, Bias, CONFIG_NAME, InitLoraWeights, LoraConfig, PEFT_VERSION},
    methods::lora::{InitLora, LoraLayer, LoraShape, LoraTensors},
    serialize,
    targets::{BaseParameter, ModelModules, ModuleKind, TargetModule, TargetPlan, plan_targets},
};

/// A model as adapters see it.
#[derive(Clone, Copy, Debug)]
pub struct BaseModel<'a> {
    /// All modules.
    pub modules: &'a Modules,
    /// `model_type` of `config.json`.
    pub model_type: &'a str,
    /// Path of the token embedding.
    pub input_embedding: Option<&'a str>,
    /// Path of the layer that makes a language model's logits.
    pub output_embedding: Option<&'a str>,
}

/// An adapter that a model carries.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its name; `default` unless there are several.
    pub name: String,
    /// What it adapts, and how; `plan.config` is what is saved.
    pub plan: TargetPlan,
    /// Remarks about its config, for the user.
    pub warnings: Vec<String>,
}

/// Where an adapter's first values come from.
enum Source<'a> {
    Fresh(Key),
    File { path: &'a Path, tensors: HashMap<String, Tensor> },
}

impl Adapter {
    /// Attaches a fresh adapter. `seed` decides its initial values, module by module.
    ///
    /// # Errors
    /// When the config is wrong, isn't implemented or doesn't fit the model.
    pub fn create(name: &str, config: &LoraConfig, base: BaseModel<'_>, seed: u64) -> Result<Self> {
        config.check_supported(AdapterUse::Fresh)?;
        let source = Source::Fresh(Key::new(seed).at("lora"));
        Self::attach(name, config, base, Vec::new(), source)
    }

    /// Attaches the adapter in a folder that PEFT or lowrank wrote; it is frozen.
    ///
    /// # Errors
    /// When the folder isn't an adapter, or its tensors don't all bind.
    pub fn load(name: &str, folder: &Path, base: BaseModel<'_>) -> Result<Self> {
        if !folder.join(CONFIG_NAME).is_file() {
            let (path, missing, hint) = (folder.to_owned(), CONFIG_NAME, "");
            return Err(Error::NotAnAdapter { path, missing, hint });
        }
        let (config, warnings) = LoraConfig::from_pretrained(folder)?;
        let (path, tensors) = adapter_tensors(folder)?;
        let warnings = warnings.iter().map(ToString::to_string).collect();
        let source = Source::File { path: &path, tensors };
        let adapter = Self::attach(name, &config, base, warnings, source)?;
        base.modules.parameters_of(name).iter().for_each(|p| p.set_trainable(false));
        Ok(adapter)
    }

    fn attach(
        name: &str,
        config: &LoraConfig,
        base: BaseModel<'_>,
        mut warnings: Vec<String>,
        mut source: Source<'_>,
    ) -> Result<Self> {
        let infos = base.modules.infos();
        let model = ModelModules {
            modules: &infos,
            model_type: base.model_type,
            input_embedding: base.input_embedding,
            output_embedding: base.output_embedding,
        };
        let plan = plan_targets(config, &model)?;
        warnings.extend(plan.warnings.iter().map(ToString::to_string));
        let adapter = Self { name: name.to_owned(), plan, warnings };
        if let Source::File { tensors, .. } = &mut source {
            stack_experts(base.modules, &adapter.plan, tensors)?;
        }
        adapter.check_tensors(base.modules, &source)?;
        adapter.add_layers(base.modules, &mut source)?;
        adapter.add_copies(base.modules, &mut source)?;
        if let Source::File { path, tensors } = &source {
            set_saved_embeddings(base.modules, path, tensors)?;
        }
        Ok(adapter)
    }

    /// An error unless the file holds exactly what the plan asks for.
    fn check_tensors(&self, modules: &Modules, source: &Source<'_>) -> Result<()> {
        let Source::File { path, tensors } = source else { return Ok(()) };
        let wanted = self.tensor_shapes(modules);
        let mut unexpected = Vec::new();
        for (name, tensor) in tensors {
            let parsed = TensorName::parse(name)
                .map_err(|source| Error::TensorName { path: path.to_path_buf(), source })?;
            match (wanted.get(name), &parsed) {
                (Some(shape), _) if shape != tensor.dims() => {
                    return Err(Error::Shape {
                        path: path.to_path_buf(),
                        name: name.clone(),
                        found: tensor.dims().to_vec(),
                        must_be: shape.clone(),
                    });
                }
                // Copies of base tensors that PEFT stores beside what is trained.
                (Some(_), _) | (None, TensorName::Wrapped(_)) => {}
                (None, parsed) if embedding_name(modules, parsed).is_some() => {}
                (None, TensorName::Plain(own)) if is_second_name(modules, own) => {}
                (None, TensorName::BaseLayerBias(layer))
                    if is_second_name(modules, &format!("{layer}.bias")) => {}
                (None, _) => unexpected.push(name.clone()),
            }
        }
        let mut missing: Vec<String> =
            wanted.into_keys().filter(|name| !tensors.contains_key(name)).collect();
        if missing.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        missing.sort();
        unexpected.sort();
        Err(Error::Unbound { path: path.to_path_buf(), missing, unexpected })
    }

    /// Names and shapes of everything that the adapter trains.
    fn tensor_shapes(&self, modules: &Modules) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = BTreeMap::new();
        for (path, target) in &self.plan.targets {
            let [a, b, bias] = tensor_names(&self.plan.adapter_path(path), target.kind);
            let Some([out, input]) = modules.layer(path).and_then(dims) else { continue };
            let r = match modules.layer(path) {
                Some(Layer::Stack(stack)) => stack.dims()[0] * target.r,
                _ => target.r,
            };
            let (a_shape, b_shape) = match target.kind {
                ModuleKind::Embedding => (vec![r, out], vec![input, r]),
                _ => (vec![r, input], vec![out, r]),
            };
            shapes.insert(a, a_shape);
            shapes.insert(b, b_shape);
            if self.plan.config.lora_bias {
                shapes.insert(bias, vec![out]);
            }
        }
        for tensor in modules.tensors() {
            if let Some((name, _)) = self.copy_name(tensor) {
                let weight = tensor.weight();
                let mut shape = weight.dims().to_vec();
                if weight.is_transposed() {
                    shape.reverse();
                }
                shapes.insert(name, shape);
            }
        }
        shapes
    }

    /// The name in the file of the copy that this adapter trains of a base tensor, and why.
    fn copy_name(&self, tensor: &BaseTensor) -> Option<(String, CopyReason)> {
        let name = tensor.name();
        let plain = |name: &str| TensorName::Plain(name.to_owned()).to_string();
        let is_saved = |name: &&str| self.plan.base_parameter(name) == BaseParameter::Saved;
        // PEFT copies a layer with all that it computes with.
        if let Some(name) = [Some(name), tensor.second_name()].into_iter().flatten().find(is_saved)
        {
            return Some((plain(name), CopyReason::ModulesToSave));
        }
        match self.plan.base_parameter(name) {
            BaseParameter::Frozen | BaseParameter::Saved => None,
            BaseParameter::Bias if tensor.is_buffer() => None,
            BaseParameter::Bias => {
                let module = name.rsplit_once('.').map_or("", |(module, _)| module);
                let own = match self.plan.targets.contains_key(module) {
                    true => TensorName::BaseLayerBias(module.to_owned()).to_string(),
                    false => plain(name),
                };
                Some((own, CopyReason::Bias))
            }
        }
    }

    fn add_layers(&self, modules: &Modules, source: &mut Source<'_>) -> Result<()> {
        for (path, target) in &self.plan.targets {
            let Some(layer) = modules.layer(path) else { continue };
            let names = tensor_names(&self.plan.adapter_path(path), target.kind);
            let shape = self.shape(target);
            let tensors = match source {
                Source::Fresh(key) => self.fresh(layer, target, key.with(random::site(path)))?,
                Source::File { tensors, .. } => take(tensors, &names)?,
            };
            let tensors = tensors.on(&layer.device())?;
            let lora = LoraLayer::new(path, names, &tensors, shape)?;
            layer.set_adapter(&self.name, lora);
        }
        Ok(())
    }

    fn shape(&self, target: &TargetModule) -> LoraShape {
        LoraShape {
            r: target.r,
            scaling: target.scaling as f32,
            dropout: target.lora_dropout as f32,
            lora_bias: self.plan.config.lora_bias,
        }
    }

    fn fresh(&self, layer: &Layer, target: &TargetModule, key: Key) -> Result<LoraTensors> {
        let init = match self.plan.config.init_lora_weights {
            InitLoraWeights::Random => InitLora::Random,
            InitLoraWeights::Gaussian => InitLora::Gaussian,
            // Other names were refused by `check_supported`.
            InitLoraWeights::Default | InitLoraWeights::Named(_) => InitLora::Standard,
        };
        let (shape, matrix) = (self.shape(target), dims(layer).unwrap_or_default());
        Ok(match layer {
            Layer::Embedding(_) => LoraTensors::fresh_rows(init, target.r, matrix, key)?,
            Layer::Stack(stack) => LoraTensors::fresh_stack(init, shape, stack.dims(), key)?,
            _ => LoraTensors::fresh(init, shape, matrix, key)?,
        })
    }

    fn add_copies(&self, modules: &Modules, source: &mut Source<'_>) -> Result<()> {
        for tensor in modules.tensors() {
            let Some((name, reason)) = self.copy_name(tensor) else { continue };
            let data = match source {
                Source::Fresh(_) => None,
                Source::File { tensors, .. } => tensors.get(&name).cloned(),
            };
            if tensor.is_buffer() {
                check_buffer(tensor, &name, data.as_ref())?;
                continue;
            }
            tensor.add_copy(&self.name, reason, name, data.as_ref())?;
        }
        Ok(())
    }

    /// Everything the adapter trains, in the model's order, named as in its file.
    pub fn parameters(&self, modules: &Modules) -> Vec<Parameter> {
        modules.parameters_of(&self.name)
    }

    /// Thaws what the adapter trains, or freezes it.
    pub fn set_trainable(&self, modules: &Modules, trainable: bool) {
        let keeps_b = self.plan.config.init_lora_weights.keeps_b();
        let is_b = |name: &str| [".lora_B.", ".lora_embedding_B"].iter().any(|b| name.contains(b));
        for parameter in self.parameters(modules) {
            parameter.set_trainable(trainable && !(keeps_b && is_b(parameter.name())));
        }
    }

    /// PEFT's `get_peft_model_state_dict`: what the file holds, by name.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn state_dict(&self, modules: &Modules) -> Result<BTreeMap<String, Tensor>> {
        let mut found: BTreeMap<String, Tensor> =
            self.parameters(modules).iter().map(|p| (p.name().to_owned(), p.data())).collect();
        // PEFT wants what a saved module doesn't train as well.
        for buffer in modules.tensors().filter(|tensor| tensor.is_buffer()) {
            if let Some((name, _)) = self.copy_name(buffer) {
                found.insert(name, buffer.to_saved()?);
            }
        }
        for path in &self.plan.saved_embeddings {
            let Some(layer) = modules.layer(path) else { continue };
            if let Some(weight) = layer.tensors().first() {
                let name = TensorName::BaseLayerWeight(path.clone()).to_string();
                found.insert(name, weight.to_saved()?);
            }
        }
        Ok(found)
    }

    /// The adapter's files by name: `adapter_config.json` and `adapter_model.safetensors`.
    /// `base` is written as `base_model_name_or_path`.
    ///
    /// # Errors
    /// When serialization fails.
    pub fn files(&self, modules: &Modules, base: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut config = self.plan.config.clone();
        config.inference_mode = true;
        config.base_model_name_or_path = Some(base.to_owned());
        config.peft_version.get_or_insert_with(|| PEFT_VERSION.to_owned());
        let weights = serialize(&self.state_dict(modules)?)?;
        Ok(vec![
            (CONFIG_NAME.to_owned(), config.to_json()?.into_bytes()),
            (WEIGHTS_NAME.to_owned(), weights),
        ])
    }

    /// Whether the adapter trains biases of the base model.
    pub fn trains_biases(&self) -> bool {
        self.plan.config.bias != Bias::None
    }

    /// Takes the adapter off the model.
    pub fn detach(&self, modules: &Modules) {
        modules.layers().for_each(|(_, layer)| layer.remove_adapter(&self.name));
    }

    /// Merges the adapter into the base tensors; [`unmerge`] takes all merges back.
    ///
    /// # Errors
    /// When `lora_bias` finds no bias to go to (nothing is merged then).
    pub fn merge(&self, modules: &Modules) -> Result<()> {
        for (path, layer) in modules.layers() {
            let biased = layer.adapter(&self.name).is_some_and(|lora| lora.b_bias.is_some());
            if biased && matches!(layer, Layer::Linear(l) if l.bias().is_none()) {
                let (name, path) = (self.name.clone(), path.to_owned());
                return Err(Error::NoBiasToMerge { name, path });
            }
        }
        Ok(modules.layers().try_for_each(|(_, layer)| layer.merge(&self.name))?)
    }
}

/// Restores the base tensors exactly, whatever was merged.
pub fn unmerge(modules: &Modules) {
    modules.layers().for_each(|(_, layer)| layer.unmerge());
}

/// Makes merges final: nothing can be taken back afterwards.
pub fn keep_merge(modules: &Modules) {
    modules.layers().for_each(|(_, layer)| layer.keep_merge());
}

/// `[out, in]` of a linear layer or of an expert's matrix, `[rows, dim]` of an embedding.
fn dims(layer: &Layer) -> Option<[usize; 2]> {
    let weight = match layer {
        Layer::Linear(l) => l.weight().weight(),
        Layer::Embedding(e) => e.weight().weight(),
        Layer::Stack(stack) => {
            let [_, out, input] = stack.dims();
            return Some([out, input]);
        }
        Layer::Norm(_) | Layer::Bare(_) => return None,
    };
    <[usize; 2]>::try_from(weight.dims()).ok()
}

/// Names of A, B and B's bias.
fn tensor_names(path: &str, kind: ModuleKind) -> [String; 3] {
    let own = || path.to_owned();
    let (a, b) = match kind {
        ModuleKind::Embedding => (TensorName::EmbeddingA(own()), TensorName::EmbeddingB(own())),
        _ => (TensorName::LoraA(own()), TensorName::LoraB(own())),
    };
    [a.to_string(), b.to_string(), TensorName::LoraBBias(own()).to_string()]
}

fn take(tensors: &mut HashMap<String, Tensor>, names: &[String; 3]) -> Result<LoraTensors> {
    let [a, b, bias] = names;
    let mut taken = |name: &str| match tensors.remove(name) {
        Some(tensor) => Ok(tensor.to_dtype(DType::F32)?),
        None => Err(candle_core::Error::Msg(format!("tensor `{name}` is gone"))),
    };
    let (a, b) = (taken(a)?, taken(b)?);
    let b_bias = tensors.remove(bias).map(|t| t.to_dtype(DType::F32)).transpose()?;
    Ok(LoraTensors { a, b, b_bias })
}

/// The base tensor that an entry of the file stores beside the adapter: PEFT's
/// `save_embedding_layers`.
fn embedding_name(modules: &Modules, name: &TensorName) -> Option<String> {
    let own = match name {
        TensorName::BaseLayerWeight(path) => format!("{path}.weight"),
        TensorName::Plain(name) => name.clone(),
        _ => return None,
    };
    let is_table = |(_, layer): (&str, &Layer)| match layer {
        Layer::Embedding(e) => e.weight().name() == own,
        Layer::Linear(l) => {
            l.weight().name() == own && own.split('.').any(|part| part == "lm_head")
        }
        Layer::Norm(_) | Layer::Stack(_) | Layer::Bare(_) => false,
    };
    modules.layers().any(is_table).then_some(own)
}

/// An error if an adapter's file has other numbers for a buffer than the model.
fn check_buffer(buffer: &BaseTensor, name: &str, data: Option<&Tensor>) -> Result<()> {
    let Some(data) = data else { return Ok(()) };
    let numbers = |tensor: &Tensor| -> Result<Vec<f32>> {
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    match numbers(data)? == numbers(&buffer.to_saved()?)? {
        true => Ok(()),
        false => Err(Error::Buffer { name: name.to_owned() }),
    }
}

/// Whether a name is the layer's own of a bias that goes by another one: PEFT writes both.
fn is_second_name(modules: &Modules, name: &str) -> bool {
    modules.tensors().any(|tensor| tensor.second_name() == Some(name))
}

/// Puts base embeddings that the file stores in the model's place, and wherever they are tied to.
fn set_saved_embeddings(
    modules: &Modules,
    path: &Path,
    tensors: &HashMap<String, Tensor>,
) -> Result<()> {
    for (name, tensor) in tensors {
        let Ok(parsed) = TensorName::parse(name) else { continue };
        let Some(own) = embedding_name(modules, &parsed) else { continue };
        // What an adapter trains of a table is its own: the layers tied to it keep the base's.
        if modules.tensors().any(|t| t.name() == own && t.copy_of_any()) {
            continue;
        }
        let places = modules.tensors().filter(|t| t.name() == own || t.tied_to() == Some(&own));
        for place in places.filter(|place| !place.copy_of_any()) {
            let before = place.to_saved()?;
            if before.dims() != tensor.dims() {
                return Err(Error::Shape {
                    path: path.to_owned(),
                    name: name.clone(),
                    found: tensor.dims().to_vec(),
                    must_be: before.dims().to_vec(),
                });
            }
            let tensor = tensor.to_dtype(before.dtype())?.to_device(before.device())?;
            place.set_weight(Weight::from_tensor(&tensor)?);
        }
    }
    Ok(())
}
