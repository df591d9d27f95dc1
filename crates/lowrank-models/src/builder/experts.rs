//! Routers and experts: what files hold expert by expert is one tensor in the model.

use std::sync::Arc;

use lowrank_autograd::Weight;
use lowrank_peft::{
    BaseTensor,
    layers::{Layer, Linear, LinearKind, Stack},
};

use super::{Builder, joined};
use crate::Result;

impl Builder {
    /// One matrix `[parts.len()·rows, columns]` for each expert, in the parameter `name`. Files hold
    /// it as it is, or the rows of each part of each expert as a layer `N.part`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn stack(
        &self,
        name: &str,
        parts: &[&str],
        [experts, rows, columns]: [usize; 3],
    ) -> Result<Stack> {
        let path = self.join(name);
        let shape = [experts, parts.len() * rows, columns];
        let (weight, stored) = match self.find(&path) {
            Some(_) => (self.tensor(&path, &shape)?, Vec::new()),
            None => self.parts(parts, [experts, rows, columns])?,
        };
        let place = self.filed.as_ref().unwrap_or(&self.path);
        let of = |n: usize| parts.iter().map(move |part| joined(place, &format!("{n}.{part}")));
        let layers = (0..experts).flat_map(of).collect();
        let stack = Stack::new(BaseTensor::new(&path, weight).stored_as(stored), layers);
        self.built().modules.push(&path, Layer::Stack(stack.clone()));
        Ok(stack)
    }

    /// A stack of what files hold expert by expert, and the names of its parts in the files.
    fn parts(
        &self,
        parts: &[&str],
        [experts, rows, columns]: [usize; 3],
    ) -> Result<(Weight, Vec<String>)> {
        let (mut weights, mut stored) = (Vec::new(), Vec::new());
        for expert in 0..experts {
            for part in parts {
                let name = self.join(&format!("{expert}.{part}.weight"));
                weights.push(self.tensor(&name, &[rows, columns])?);
                stored.push(self.filed_name(&name).unwrap_or(name));
            }
        }
        let shape = [experts, parts.len() * rows, columns];
        Ok((Weight::stacked(weights, &shape)?, stored))
    }

    /// A router's weight `[experts, hidden]`, widened to f32: which experts a token goes to hangs on
    /// small differences.
    ///
    /// # Errors
    /// When it is missing or misshapen.
    pub fn router(&self, name: &str, experts: usize, hidden: usize) -> Result<Linear> {
        let path = self.join(name);
        let full = format!("{path}.weight");
        let weight = self.tensor(&full, &[experts, hidden])?;
        let stored = self.filed_name(&full).into_iter().collect();
        let tensor = BaseTensor::widened(full, &weight)?.stored_as(stored);
        Ok(self.register_linear(&path, LinearKind::Router, tensor, None))
    }

    /// Numbers that aren't trained, `len` of them.
    ///
    /// # Errors
    /// When they are missing or misshapen.
    pub fn buffer(&self, name: &str, len: usize) -> Result<Arc<[f32]>> {
        let path = self.join(name);
        let weight = self.tensor(&path, &[len])?;
        let numbers: Vec<f32> = weight.to_f32()?.to_vec1()?;
        self.register_bare(&path, BaseTensor::buffer(&path, &weight)?);
        Ok(numbers.into())
    }
}
