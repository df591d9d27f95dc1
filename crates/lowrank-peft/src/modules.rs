//! A model's modules by name, in definition order.

use lowrank_autograd::Parameter;

use crate::{
    BaseTensor,
    layers::{Layer, LinearKind},
    targets::{ModuleInfo, ModuleKind},
};

/// One module: a layer, or a container of modules.
#[derive(Clone, Debug)]
pub struct Module {
    /// Dotted path below the model, without `base_model.model.`.
    pub path: String,
    /// The layer; `None` for a container.
    pub layer: Option<Layer>,
}

/// All modules of a model, containers before what they hold.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    list: Vec<Module>,
}

impl Modules {
    /// Adds a layer and those of its containers that aren't there yet.
    pub fn push(&mut self, path: &str, layer: Layer) {
        for (dot, _) in path.match_indices('.') {
            let container = &path[..dot];
            if !self.list.iter().rev().any(|m| m.path == container) {
                self.list.push(Module { path: container.to_owned(), layer: None });
            }
        }
        self.list.push(Module { path: path.to_owned(), layer: Some(layer) });
    }

    /// All modules in definition order.
    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.list.iter()
    }

    /// The layers, with their paths.
    pub fn layers(&self) -> impl Iterator<Item = (&str, &Layer)> {
        self.list.iter().filter_map(|m| Some((m.path.as_str(), m.layer.as_ref()?)))
    }

    /// The layer at a path.
    pub fn layer(&self, path: &str) -> Option<&Layer> {
        self.layers().find(|(own, _)| *own == path).map(|(_, layer)| layer)
    }

    /// What matching needs to know of every module. A buffer is part of one.
    pub fn infos(&self) -> Vec<ModuleInfo> {
        let modules = self.list.iter().filter(|m| !matches!(m.layer, Some(Layer::Bare(_))));
        modules.map(|m| ModuleInfo { path: m.path.clone(), kind: m.kind() }).collect()
    }

    /// All base tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &BaseTensor> {
        self.layers().flat_map(|(_, layer)| layer.tensors())
    }

    /// Everything that `adapter` trains, under its names in the adapter file.
    pub fn parameters_of(&self, adapter: &str) -> Vec<Parameter> {
        let mut found = Vec::new();
        for (_, layer) in self.layers() {
            if let Some(lora) = layer.adapter(adapter) {
                found.extend(lora.parameters().cloned());
            }
            let copies = layer.tensors().into_iter().filter_map(|t| t.copy_of(adapter));
            found.extend(copies.map(|(_, copy)| copy));
        }
        found
    }

    /// Elements of the base model's parameters; tied ones count once.
    pub fn base_elements(&self) -> usize {
        let own = self.tensors().filter(|t| t.tied_to().is_none() && !t.is_buffer());
        own.map(|t| t.weight().elem_count()).sum()
    }
}

impl Module {
    /// What the module is, as far as adapters care.
    pub fn kind(&self) -> ModuleKind {
        match &self.layer {
            None => ModuleKind::Container,
            Some(Layer::Linear(l)) => match l.kind() {
                LinearKind::Linear => ModuleKind::Linear,
                LinearKind::Conv1D => ModuleKind::Conv1D,
                LinearKind::Router => ModuleKind::Router,
            },
            Some(Layer::Embedding(_)) => ModuleKind::Embedding,
            Some(Layer::Norm(_)) => ModuleKind::Norm,
            Some(Layer::Stack(_)) => ModuleKind::Parameter,
            Some(Layer::Bare(_)) => ModuleKind::Other,
        }
    }
}
