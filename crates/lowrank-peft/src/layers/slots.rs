//! The adapters that one layer carries, by name.

use std::sync::{PoisonError, RwLock};

use crate::{Pass, methods::lora::LoraLayer};

/// Adapters in the order in which they came, and which of them the weight has merged.
#[derive(Debug, Default)]
pub(crate) struct Slots(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    adapters: Vec<(String, LoraLayer)>,
    merged: Vec<String>,
}

impl Slots {
    /// The adapter of this name.
    pub(crate) fn get(&self, name: &str) -> Option<LoraLayer> {
        self.read(|s| s.adapters.iter().find(|(own, _)| own == name).map(|(_, lora)| lora.clone()))
    }

    /// Adds an adapter, or replaces the one of the same name.
    pub(crate) fn set(&self, name: &str, lora: LoraLayer) {
        self.write(|s| {
            s.adapters.retain(|(own, _)| own != name);
            s.adapters.push((name.to_owned(), lora));
        });
    }

    /// Takes an adapter out.
    pub(crate) fn remove(&self, name: &str) {
        self.write(|s| s.adapters.retain(|(own, _)| own != name));
    }

    /// The adapters whose terms are added in this pass, in the pass's order.
    pub(crate) fn active(&self, pass: &Pass) -> Vec<LoraLayer> {
        self.read(|s| {
            let names = pass.adapters().iter().filter(|name| !s.merged.contains(name));
            let found = names.filter_map(|name| s.adapters.iter().find(|(own, _)| own == name));
            found.map(|(_, lora)| lora.clone()).collect()
        })
    }

    /// Marks an adapter as merged and returns it; `None` if there is nothing to merge.
    pub(crate) fn begin_merge(&self, name: &str) -> Option<LoraLayer> {
        let lora = self.get(name)?;
        self.write(|s| {
            let fresh = !s.merged.iter().any(|own| own == name);
            if fresh {
                s.merged.push(name.to_owned());
            }
            fresh.then_some(lora)
        })
    }

    /// Marks every adapter as not merged.
    pub(crate) fn clear_merged(&self) {
        self.write(|s| s.merged.clear());
    }

    fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}
