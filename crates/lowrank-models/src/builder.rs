//! Walks a model by its Hugging Face names: an architecture asks for a layer at a path and gets it
//! with its weights loaded; the layer is registered for adapters on the way.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeSet,
    rc::Rc,
    sync::Arc,
};

use candle_core::{Device, Tensor};
use lowrank_autograd::{Key, Weight, ops, random};
use lowrank_peft::{
    BaseTensor, Modules,
    layers::{Embedding, Layer, Linear, LinearKind, Norm, NormKind},
};

use crate::{Architecture, Error, Result, Task, WeightPlace, Weights};

mod bare;
mod experts;
mod tables;

/// Where a fresh head's weights come from: normal with this deviation, transformers'
/// `initializer_range`.
#[derive(Clone, Copy, Debug)]
pub struct FreshInit {
    /// Seed of the stream; each tensor draws from its own part by name.
    pub seed: u64,
    /// Standard deviation.
    pub deviation: f64,
}

/// What a norm is, apart from its weights.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Which normalization.
    pub kind: NormKind,
    /// Elements that it goes over.
    pub dim: usize,
    /// Epsilon under the root.
    pub eps: f64,
    /// Whether it has offsets.
    pub bias: bool,
}

impl NormShape {
    /// An RMSNorm over `dim` elements.
    pub fn rms(dim: usize, eps: f64) -> Self {
        Self { kind: NormKind::Rms, dim, eps, bias: false }
    }

    /// A LayerNorm over `dim` elements.
    pub fn layer(dim: usize, eps: f64) -> Self {
        Self { kind: NormKind::Layer, dim, eps, bias: true }
    }
}

/// A place in a model under construction. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Builder {
    shared: Rc<Shared>,
    path: String,
    /// The same place as files call it, where they call it something else.
    filed: Option<String>,
    /// Where the base model lies, a model's own place included.
    base: String,
}

#[derive(Debug)]
struct Shared {
    weights: Weights,
    architecture: &'static Architecture,
    fresh: FreshInit,
    place: WeightPlace,
    state: RefCell<Built>,
}

/// What building a model brought about.
#[derive(Debug, Default)]
pub struct Built {
    /// All modules.
    pub modules: Modules,
    /// Tensors of task heads that the files lack.
    pub fresh: Vec<String>,
    used: BTreeSet<String>,
}

impl Builder {
    /// The root of a model with the head for `task`. A tensor is found if its file has it with or
    /// without one of the architecture's prefixes (`bert`, `model`).
    pub fn new(
        weights: Weights,
        architecture: &'static Architecture,
        task: Task,
        fresh: FreshInit,
        place: WeightPlace,
    ) -> Self {
        let (base, state) = (architecture.base_for(task).to_owned(), RefCell::default());
        let shared = Shared { weights, architecture, fresh, place, state };
        Self { shared: Rc::new(shared), path: String::new(), filed: None, base }
    }

    /// The place `name` below this one; an empty name is this place itself.
    pub fn at(&self, name: &str) -> Self {
        let filed = self.filed.as_ref().map(|filed| joined(filed, name));
        Self { path: self.join(name), filed, ..self.clone() }
    }

    /// The place `name` below this one, which files call `filed`.
    pub fn at_filed(&self, name: &str, filed: &str) -> Self {
        Self { filed: Some(self.join(filed)), ..self.at(name) }
    }

    /// The place of the `index`-th block of a list.
    pub fn nth(&self, name: &str, index: usize) -> Self {
        self.at(name).at(&index.to_string())
    }

    /// The root of a model within this one, with the head for `task`. Its files know it by these
    /// names alone.
    pub fn nested(&self, name: &str, architecture: &Architecture, task: Task) -> Self {
        let root = self.at(name);
        Self { base: root.join(architecture.base_for(task)), ..root }
    }

    /// What `build` makes at the places of a list, given their numbers.
    ///
    /// # Errors
    /// Whatever `build` returns.
    pub fn list<T>(
        &self,
        name: &str,
        len: usize,
        build: impl Fn(usize, &Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        (0..len).map(|i| build(i, &self.nth(name, i))).collect()
    }

    /// The place of the base model under its head.
    pub fn base(&self) -> Self {
        Self { path: self.base.clone(), filed: None, ..self.clone() }
    }

    fn join(&self, name: &str) -> String {
        joined(&self.path, name)
    }

    /// A linear layer, `[out, input]`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn linear(&self, name: &str, input: usize, out: usize, bias: bool) -> Result<Linear> {
        let path = self.join(name);
        let weight = self.matrix(&path, &[out, input])?;
        let bias = bias.then(|| self.vector(&format!("{path}.bias"), out)).transpose()?;
        Ok(self.register_linear(&path, LinearKind::Linear, weight, bias))
    }

    /// transformers' Conv1D: a linear layer whose file holds `[input, out]`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn conv1d(&self, name: &str, input: usize, out: usize) -> Result<Linear> {
        let path = self.join(name);
        let name = format!("{path}.weight");
        let weight = self.tensor(&name, &[input, out])?.transpose();
        let weight = BaseTensor::new(name, weight);
        let bias = self.vector(&format!("{path}.bias"), out)?;
        Ok(self.register_linear(&path, LinearKind::Conv1D, weight, Some(bias)))
    }

    /// A linear layer that reads an embedding's table; its bias, if any, lies at `bias`, a name
    /// below this place, and starts at zero where the file lacks it.
    ///
    /// As in transformers 5, a file that has other numbers than the table's under the layer's own
    /// name is believed: the layer then isn't tied.
    ///
    /// # Errors
    /// When a tensor is misshapen.
    pub fn tied_linear(&self, name: &str, table: &Embedding, bias: Option<&str>) -> Result<Linear> {
        let path = self.join(name);
        let weight = self.tied_weight(&path, table)?;
        let out = weight.weight().dims().first().copied().unwrap_or_default();
        let tied = weight.tied_to().is_some();
        let bias = bias.map(|bias| self.tied_bias(&path, &self.join(bias), tied, out));
        Ok(self.register_linear(&path, LinearKind::Linear, weight, bias.transpose()?))
    }

    fn tied_weight(&self, path: &str, table: &Embedding) -> Result<BaseTensor> {
        let name = format!("{path}.weight");
        let shared = table.weight().weight();
        if self.find(&name).is_some() {
            let own = self.tensor(&name, shared.dims())?;
            if !same_rows(&own, &shared)? {
                return Ok(BaseTensor::new(name, own));
            }
        }
        Ok(table.weight().tied(name))
    }

    /// The bias at `shared`, of which older files hold a copy beside the weight.
    fn tied_bias(&self, path: &str, shared: &str, tied: bool, out: usize) -> Result<BaseTensor> {
        let copy = format!("{path}.bias");
        if !tied && self.find(&copy).is_some() {
            return self.vector(&copy, out);
        }
        let bias = match self.find(shared) {
            Some(_) => self.vector(shared, out),
            None => self.fresh_vector(shared.to_owned(), out, 0.0),
        };
        self.built().used.insert(copy.clone());
        Ok(if copy == shared { bias? } else { bias?.also_named(copy) })
    }

    /// The linear layer of a task head: where the file lacks it, it starts fresh.
    ///
    /// # Errors
    /// When a tensor is misshapen, or only one of weight and bias is there.
    pub fn head_linear(&self, name: &str, input: usize, out: usize, bias: bool) -> Result<Linear> {
        let path = self.join(name);
        if self.find(&format!("{path}.weight")).is_some() {
            return self.linear(name, input, out, bias);
        }
        let weight_name = format!("{path}.weight");
        let init = self.shared.fresh;
        let normals = Key::new(init.seed).with(random::site(&weight_name)).normals(out * input);
        let weight: Vec<f32> =
            normals.iter().map(|v| (f64::from(*v) * init.deviation) as f32).collect();
        let weight = Tensor::from_vec(weight, (out, input), &Device::Cpu)?;
        let weight = BaseTensor::new(weight_name.clone(), self.made(&weight)?);
        self.built().fresh.push(weight_name);
        let bias = bias.then(|| self.fresh_vector(format!("{path}.bias"), out, 0.0));
        Ok(self.register_linear(&path, LinearKind::Linear, weight, bias.transpose()?))
    }

    /// The LayerNorm of a task head: where the file lacks it, it starts as the identity.
    ///
    /// # Errors
    /// When a tensor is misshapen, or only the weight is there.
    pub fn head_layer_norm(&self, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        let path = self.join(name);
        let (weight, bias) = (format!("{path}.weight"), format!("{path}.bias"));
        if self.find(&weight).is_some() {
            return self.layer_norm(name, dim, eps);
        }
        let weight = self.fresh_vector(weight, dim, 1.0)?;
        let bias = self.fresh_vector(bias, dim, 0.0)?;
        Ok(self.register_norm(&path, Norm::new(NormKind::Layer, weight, Some(bias), eps)))
    }

    fn fresh_vector(&self, name: String, len: usize, value: f32) -> Result<BaseTensor> {
        let data = Tensor::full(value, len, &Device::Cpu)?;
        self.built().fresh.push(name.clone());
        Ok(BaseTensor::widened(name, &self.made(&data)?)?)
    }

    /// An RMSNorm over `dim` elements.
    ///
    /// # Errors
    /// When the weight is missing or misshapen.
    pub fn rms_norm(&self, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        self.norm(name, NormShape::rms(dim, eps))
    }

    /// A LayerNorm over `dim` elements.
    ///
    /// # Errors
    /// When weight or bias are missing or misshapen.
    pub fn layer_norm(&self, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        self.norm(name, NormShape::layer(dim, eps))
    }

    /// A norm.
    ///
    /// # Errors
    /// When weight or bias are missing or misshapen.
    pub fn norm(&self, name: &str, shape: NormShape) -> Result<Norm> {
        let path = self.join(name);
        let weight = self.vector(&format!("{path}.weight"), shape.dim)?;
        let bias = shape.bias.then(|| self.vector(&format!("{path}.bias"), shape.dim));
        let norm = Norm::new(shape.kind, weight, bias.transpose()?, shape.eps);
        Ok(self.register_norm(&path, norm))
    }

    /// A LayerNorm without weights.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn plain_layer_norm(&self, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        let ones = self.made(&Tensor::full(1f32, dim, &Device::Cpu)?)?;
        let weight = BaseTensor::buffer(self.join(name), &ones)?;
        Ok(Norm::new(NormKind::Layer, weight, None, eps))
    }

    /// A dropout at this place.
    pub fn dropout(&self, name: &str, p: f32) -> DropoutSite {
        DropoutSite { p, site: random::site(&self.join(name)) }
    }

    fn register_linear(
        &self,
        path: &str,
        kind: LinearKind,
        weight: BaseTensor,
        bias: Option<BaseTensor>,
    ) -> Linear {
        let layer = Linear::new(kind, weight, bias);
        self.built().modules.push(path, Layer::Linear(layer.clone()));
        layer
    }

    fn register_norm(&self, path: &str, layer: Norm) -> Norm {
        self.built().modules.push(path, Layer::Norm(layer.clone()));
        layer
    }

    fn matrix(&self, path: &str, shape: &[usize]) -> Result<BaseTensor> {
        let name = format!("{path}.weight");
        let weight = self.tensor(&name, shape)?;
        Ok(BaseTensor::new(name, weight))
    }

    fn vector(&self, name: &str, len: usize) -> Result<BaseTensor> {
        Ok(BaseTensor::widened(name, &self.tensor(name, &[len])?)?)
    }

    fn tensor(&self, full: &str, shape: &[usize]) -> Result<Weight> {
        let Some(found) = self.find(full) else {
            let names: Vec<String> =
                self.spellings(full).iter().map(|n| format!("`{n}`")).collect();
            let (folder, looked_for) = (self.shared.weights.folder(), names.join(", "));
            let name = full.to_owned();
            return Err(Error::TensorMissing { folder, name, looked_for });
        };
        let weight = self.shared.weights.get(&found, shape)?;
        self.built().used.insert(found);
        let weight = match self.shared.place.dtype {
            Some(dtype) => weight.to_dtype(dtype)?,
            None => weight,
        };
        Ok(weight.to_device(&self.shared.place.device)?)
    }

    /// A weight that no file has.
    fn made(&self, tensor: &Tensor) -> Result<Weight> {
        Ok(Weight::from_tensor(tensor)?.to_device(&self.shared.place.device)?)
    }

    /// The name under which files have a tensor of this place, if it isn't the model's own.
    fn filed_name(&self, full: &str) -> Option<String> {
        let rest = full.strip_prefix(&self.path)?;
        Some(format!("{}{rest}", self.filed.as_ref()?))
    }

    fn find(&self, full: &str) -> Option<String> {
        self.spellings(full).into_iter().find(|name| self.shared.weights.has(name))
    }

    /// The names under which files keep a tensor: theirs, its own, with or without the base model's
    /// prefix, and the old names of LayerNorm's parameters.
    fn spellings(&self, full: &str) -> Vec<String> {
        let mut names = self.spellings_of(full);
        names.extend(self.filed_name(full).iter().flat_map(|filed| self.spellings_of(filed)));
        names
    }

    fn spellings_of(&self, full: &str) -> Vec<String> {
        let Architecture { prefixes, .. } = self.shared.architecture;
        let mut names = vec![self.shared.architecture.file_name(full).into_owned()];
        names.push(full.to_owned());
        for prefix in *prefixes {
            let bare = full.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
            names.extend(bare.map(str::to_owned));
        }
        let bare = names.last().cloned().unwrap_or_default();
        names.extend(prefixes.iter().map(|prefix| format!("{prefix}.{bare}")));
        if let Some(norm) = full.strip_suffix(".weight") {
            names.push(format!("{norm}.gamma"));
        } else if let Some(norm) = full.strip_suffix(".bias") {
            names.push(format!("{norm}.beta"));
        }
        names.dedup();
        names
    }

    fn built(&self) -> RefMut<'_, Built> {
        self.shared.state.borrow_mut()
    }

    /// Ends the construction: what was built, and the tensors that nothing asked for.
    pub fn finish(&self) -> (Built, Vec<String>) {
        let built = self.shared.state.take();
        let unused = self.shared.weights.names().filter(|n| !built.used.contains(*n));
        let unused = unused.map(str::to_owned).collect();
        (built, unused)
    }
}

fn joined(path: &str, name: &str) -> String {
    match (path, name) {
        ("", _) => name.to_owned(),
        (_, "") => path.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

/// Whether two tables hold the same numbers; read piece by piece, as they may be large.
fn same_rows(a: &Weight, b: &Weight) -> Result<bool> {
    const ROWS: usize = 1024;
    let rows = a.dims().first().copied().unwrap_or_default();
    for start in (0..rows).step_by(ROWS) {
        let ids: Arc<[u32]> = (start..rows.min(start + ROWS)).map(|row| row as u32).collect();
        let read = |table| -> Result<Vec<f32>> {
            let piece = ops::embedding(ops::Rows::Frozen(table), &ids, Vec::new(), None)?;
            Ok(piece.data().flatten_all()?.to_vec1()?)
        };
        if read(a)? != read(b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Dropout at one place of a model.
#[derive(Clone, Copy, Debug)]
pub struct DropoutSite {
    p: f32,
    site: u64,
}

impl DropoutSite {
    /// `x` with the mask of this pass; `x` itself when nothing is dropped.
    ///
    /// # Errors
    /// When `x` isn't a matrix.
    pub fn forward(
        &self,
        x: &lowrank_autograd::Value,
        pass: &lowrank_peft::Pass,
    ) -> lowrank_autograd::Result<lowrank_autograd::Value> {
        lowrank_autograd::ops::dropout(x, self.mask(pass).as_ref())
    }

    /// `x` multiplied by noise from `1 - p` to `1 + p` instead, where a pass drops.
    ///
    /// # Errors
    /// When `x` isn't a matrix.
    pub fn jitter(
        &self,
        x: &lowrank_autograd::Value,
        pass: &lowrank_peft::Pass,
    ) -> lowrank_autograd::Result<lowrank_autograd::Value> {
        lowrank_autograd::ops::jitter(x, pass.jitter(self.p, self.site).as_ref())
    }

    /// The mask of this pass.
    pub fn mask(&self, pass: &lowrank_peft::Pass) -> Option<lowrank_autograd::Dropout> {
        pass.dropout(self.p, self.site)
    }
}
