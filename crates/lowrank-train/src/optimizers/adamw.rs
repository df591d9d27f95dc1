//! AdamW (arXiv:1711.05101): `p -= lr·λ·p`, then `p -= lr·m̂/(√v̂ + ε)`. Reference: PyTorch's
//! `torch.optim.AdamW`, whose order of operations this follows.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use lowrank_autograd::{
    Gradients, Parameter,
    kernels::adamw::{AdamWUpdate, Moments},
};

use crate::{Error, Result};

/// Settings under PyTorch's names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean square.
    pub beta2: f64,
    /// Added to the root.
    pub epsilon: f64,
    /// λ; not applied to biases and norms, as in transformers' trainer, unless `decay_all`.
    pub weight_decay: f64,
    /// Decay everything.
    pub decay_all: bool,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decay_all: false }
    }
}

/// AdamW over a fixed list of parameters; its state is f32.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    moments: Moments,
    /// Updates of this parameter; those without a gradient for it don't count, as in PyTorch.
    steps: u64,
    decay: f64,
}

impl AdamW {
    /// An optimizer at its beginning.
    ///
    /// # Errors
    /// Those of the parameters' device.
    pub fn new(parameters: Vec<Parameter>, settings: AdamWSettings) -> Result<Self> {
        let slot = |parameter: Parameter| {
            let moments = Moments::new(&parameter)?;
            let decays = settings.decay_all || decays(parameter.name());
            let decay = if decays { settings.weight_decay } else { 0.0 };
            Ok(Slot { parameter, moments, steps: 0, decay })
        };
        let slots = parameters.into_iter().map(slot).collect::<Result<_>>()?;
        Ok(Self { settings, slots })
    }

    /// Updates every parameter that has a gradient.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn step(&mut self, learning_rate: f64, gradients: &Gradients) -> Result<()> {
        let AdamWSettings { beta1, beta2, epsilon, .. } = self.settings;
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(slot.parameter.id()) else { continue };
            slot.steps += 1;
            let exponent = i32::try_from(slot.steps).unwrap_or(i32::MAX);
            // The complements are rounded from f64: 1 - 0.999 in f32 is off by 5e-5 of itself.
            let update = AdamWUpdate {
                keep: (1.0 - learning_rate * slot.decay) as f32,
                new_mean: (1.0 - beta1) as f32,
                old_square: beta2 as f32,
                new_square: (1.0 - beta2) as f32,
                size: (learning_rate / (1.0 - beta1.powi(exponent))) as f32,
                root: (1.0 - beta2.powi(exponent)).sqrt() as f32,
                epsilon: epsilon as f32,
            };
            update.apply(&slot.parameter, gradient, &mut slot.moments)?;
        }
        Ok(())
    }

    /// The state for a checkpoint: both moments and the updates of every parameter, by name.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for slot in &self.slots {
            let (name, shape) = (slot.parameter.name(), slot.parameter.data().dims().to_vec());
            for (part, values) in ["exp_avg", "exp_avg_sq"].into_iter().zip(slot.moments.to_vecs()?)
            {
                let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
                state.insert(format!("{name}.{part}"), tensor);
            }
            let steps = Tensor::new(slot.steps as i64, &Device::Cpu)?;
            state.insert(format!("{name}.step"), steps);
        }
        Ok(state)
    }

    /// Takes up a saved state.
    ///
    /// # Errors
    /// When the state isn't one of these parameters.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            let name = slot.parameter.name();
            let saved = |part: &str| {
                let key = format!("{name}.{part}");
                let lacks = || Error::Batch(format!("the optimizer's state lacks `{key}`"));
                state.get(&key).ok_or_else(lacks)
            };
            let steps = saved("step")?.to_scalar::<i64>()?.max(0).cast_unsigned();
            let moment = |part: &str, size: usize| {
                let values = saved(part)?.flatten_all()?.to_vec1::<f32>()?;
                match values.len() == size {
                    true => Ok(values),
                    false => {
                        let what = format!("the optimizer's `{name}.{part}` has another size");
                        Err(Error::Batch(what))
                    }
                }
            };
            let size = slot.parameter.data().elem_count();
            let moments = [moment("exp_avg", size)?, moment("exp_avg_sq", size)?];
            slot.moments = Moments::restore(&slot.parameter, moments)?;
            slot.steps = steps;
        }
        Ok(())
    }
}

/// The rule of transformers' `Trainer.get_decay_parameter_names`: everything decays but what has
/// `bias` in its name, and norms, by their names and (those called `ln_…`) by their class.
fn decays(name: &str) -> bool {
    let name = name.to_lowercase();
    let is_norm = |part: &str| part == "norm" || part.ends_with("_norm") || part.starts_with("ln_");
    let anywhere = ["bias", "layernorm", "rmsnorm"];
    !anywhere.iter().any(|word| name.contains(word)) && !name.split('.').any(is_norm)
}
