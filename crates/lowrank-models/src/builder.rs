//! Walks a model by its Hugging Face names: an architecture asks for a layer at a path and gets it
//! with its weights loaded; the layer is registered for adapters on the way.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeSet,
    rc::Rc,
};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Key, Weight, random};
use lowrank_peft::{
    BaseTensor, Modules,
    layers::{Embedding, Layer, Linear, LinearKind, Norm, NormKind},
};

use crate::{Error, Result, Weights};

/// Where a fresh head's weights come from: normal with this deviation, transformers'
/// `initializer_range`.
#[derive(Clone, Copy, Debug)]
pub struct FreshInit {
    /// Seed of the stream; each tensor draws from its own part by name.
    pub seed: u64,
    /// Standard deviation.
    pub deviation: f64,
}

/// A place in a model under construction. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Builder {
    shared: Rc<Shared>,
    path: String,
}

#[derive(Debug)]
struct Shared {
    weights: Weights,
    prefixes: &'static [&'static str],
    fresh: FreshInit,
    /// Weights are converted to this when they are loaded; `None` leaves them as they lie.
    dtype: Option<DType>,
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
    /// The root of a model. `prefixes` are the names under which heads hold the base model
    /// (`bert`, `model`): a tensor is also found if its file has it with or without one.
    pub fn new(
        weights: Weights,
        prefixes: &'static [&'static str],
        fresh: FreshInit,
        dtype: Option<DType>,
    ) -> Self {
        let state = RefCell::default();
        Self {
            shared: Rc::new(Shared { weights, prefixes, fresh, dtype, state }),
            path: String::new(),
        }
    }

    /// The place `name` below this one; an empty name is this place itself.
    pub fn at(&self, name: &str) -> Self {
        Self { shared: Rc::clone(&self.shared), path: self.join(name) }
    }

    /// The place of the `index`-th block of a list.
    pub fn nth(&self, name: &str, index: usize) -> Self {
        self.at(name).at(&index.to_string())
    }

    fn join(&self, name: &str) -> String {
        match (self.path.as_str(), name) {
            ("", _) => name.to_owned(),
            (_, "") => self.path.clone(),
            (path, _) => format!("{path}.{name}"),
        }
    }

    /// A linear layer, `[out, input]`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn linear(&self, name: &str, input: usize, out: usize, bias: bool) -> Result<Linear> {
        let path = self.join(name);
        let weight =
            BaseTensor::new(format!("{path}.weight"), self.tensor(&path, "weight", &[out, input])?);
        let bias = bias.then(|| self.vector(&path, "bias", out)).transpose()?;
        Ok(self.register_linear(&path, LinearKind::Linear, weight, bias))
    }

    /// transformers' Conv1D: a linear layer whose file holds `[input, out]`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn conv1d(&self, name: &str, input: usize, out: usize) -> Result<Linear> {
        let path = self.join(name);
        let weight = self.tensor(&path, "weight", &[input, out])?.transpose();
        let weight = BaseTensor::new(format!("{path}.weight"), weight);
        let bias = self.vector(&path, "bias", out)?;
        Ok(self.register_linear(&path, LinearKind::Conv1D, weight, Some(bias)))
    }

    /// A linear layer that reads an embedding's table; its bias, if any, lies at `bias`, a name
    /// below this place.
    ///
    /// # Errors
    /// When the bias is missing or misshapen.
    pub fn tied_linear(&self, name: &str, table: &Embedding, bias: Option<&str>) -> Result<Linear> {
        let path = self.join(name);
        let full = format!("{path}.weight");
        self.built().used.insert(full.clone());
        let weight = table.weight().tied(full);
        let out = table.weight().weight().dims().first().copied().unwrap_or_default();
        let bias = bias.map(|bias| match bias.rsplit_once('.') {
            Some((module, name)) => self.vector(&self.join(module), name, out),
            None => self.vector(&self.path, bias, out),
        });
        Ok(self.register_linear(&path, LinearKind::Linear, weight, bias.transpose()?))
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
        let weight = BaseTensor::new(weight_name.clone(), Weight::from_tensor(&weight)?);
        self.built().fresh.push(weight_name);
        let bias = bias.then(|| {
            let name = format!("{path}.bias");
            let zeros = Tensor::zeros(out, DType::F32, &Device::Cpu)?;
            self.built().fresh.push(name.clone());
            BaseTensor::vector(name, &Weight::from_tensor(&zeros)?)
        });
        Ok(self.register_linear(&path, LinearKind::Linear, weight, bias.transpose()?))
    }

    /// An embedding, `[rows, dim]`.
    ///
    /// # Errors
    /// When the table is missing or misshapen.
    pub fn embedding(&self, name: &str, rows: usize, dim: usize) -> Result<Embedding> {
        let path = self.join(name);
        let weight =
            BaseTensor::new(format!("{path}.weight"), self.tensor(&path, "weight", &[rows, dim])?);
        let layer = Embedding::new(weight);
        self.built().modules.push(&path, Layer::Embedding(layer.clone()));
        Ok(layer)
    }

    /// An embedding that reads another one's table under a name of its own.
    pub fn tied_embedding(&self, name: &str, table: &Embedding) -> Embedding {
        let path = self.join(name);
        let full = format!("{path}.weight");
        self.built().used.insert(full.clone());
        let layer = Embedding::new(table.weight().tied(full));
        self.built().modules.push(&path, Layer::Embedding(layer.clone()));
        layer
    }

    /// An RMSNorm over `dim` elements.
    ///
    /// # Errors
    /// When the weight is missing or misshapen.
    pub fn rms_norm(&self, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        self.norm(NormKind::Rms, name, dim, eps)
    }

    /// A LayerNorm over `dim` elements.
    ///
    /// # Errors
    /// When weight or bias are missing or misshapen.
    pub fn layer_norm(&self, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        self.norm(NormKind::Layer, name, dim, eps)
    }

    fn norm(&self, kind: NormKind, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        let path = self.join(name);
        let weight = self.vector(&path, "weight", dim)?;
        let bias =
            (kind == NormKind::Layer).then(|| self.vector(&path, "bias", dim)).transpose()?;
        let layer = Norm::new(kind, weight, bias, eps);
        self.built().modules.push(&path, Layer::Norm(layer.clone()));
        Ok(layer)
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

    fn vector(&self, path: &str, name: &str, len: usize) -> Result<BaseTensor> {
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        Ok(BaseTensor::vector(full, &self.tensor(path, name, &[len])?)?)
    }

    fn tensor(&self, path: &str, name: &str, shape: &[usize]) -> Result<Weight> {
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let Some(found) = self.find(&full) else {
            let names: Vec<String> =
                self.spellings(&full).iter().map(|n| format!("`{n}`")).collect();
            let (folder, looked_for) = (self.shared.weights.folder(), names.join(", "));
            return Err(Error::TensorMissing { folder, name: full, looked_for });
        };
        let weight = self.shared.weights.get(&found, shape)?;
        self.built().used.insert(found);
        match self.shared.dtype {
            Some(dtype) if dtype != weight.dtype() => {
                Ok(Weight::from_tensor(&weight.to_tensor()?.to_dtype(dtype)?)?)
            }
            _ => Ok(weight),
        }
    }

    fn find(&self, full: &str) -> Option<String> {
        self.spellings(full).into_iter().find(|name| self.shared.weights.has(name))
    }

    /// The names under which files keep a tensor: its own, with or without the base model's
    /// prefix, and the old names of LayerNorm's parameters.
    fn spellings(&self, full: &str) -> Vec<String> {
        let mut names = vec![full.to_owned()];
        for prefix in self.shared.prefixes {
            let bare = full.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
            names.extend(bare.map(str::to_owned));
        }
        let bare = names.last().cloned().unwrap_or_default();
        names.extend(self.shared.prefixes.iter().map(|prefix| format!("{prefix}.{bare}")));
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

    /// The mask of this pass.
    pub fn mask(&self, pass: &lowrank_peft::Pass) -> Option<lowrank_autograd::Dropout> {
        pass.dropout(self.p, self.site)
    }
}
