//! Sparse MLPs: each token visits a few experts, and perhaps one that all tokens share
//! (arXiv:2401.04088 Mixtral, arXiv:2401.06066 DeepSeekMoE).

use std::sync::Arc;

use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation},
};
use lowrank_peft::{
    Pass,
    layers::{Linear, Stack},
};

use super::{
    mlp::{GatedMlp, Mlp, MlpShape},
    router::{Router, Routes},
};
use crate::{Builder, DropoutSite};

/// Gated MLPs side by side, in the two parameters that transformers 5 has for them.
#[derive(Clone, Debug)]
pub struct Experts {
    gate_up_proj: Stack,
    down_proj: Stack,
    activation: Activation,
}

/// What files that hold each expert by itself call its gate, up and down projection.
#[derive(Clone, Copy, Debug)]
pub struct ExpertNames(pub [&'static str; 3]);

impl ExpertNames {
    /// As in a [`GatedMlp`].
    pub const PLAIN: Self = Self(["gate_proj", "up_proj", "down_proj"]);
}

impl Experts {
    /// So many experts at `b`, each of this shape; biases aren't among their tensors.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn build(
        experts: usize,
        shape: MlpShape,
        ExpertNames([gate, up, down]): ExpertNames,
        b: &Builder,
    ) -> crate::Result<Self> {
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        Ok(Self {
            gate_up_proj: b.stack("gate_up_proj", &[gate, up], [experts, inner, hidden])?,
            down_proj: b.stack("down_proj", &[down], [experts, hidden, inner])?,
            activation: shape.activation,
        })
    }

    /// `x` `[n, hidden_size]` → the same: what each token's experts make of it, weighted.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, routes: &Routes, pass: &Pass) -> Result<Value> {
        let x = ops::select_rows(x, &routes.tokens)?;
        let gate_up = self.gate_up_proj.forward(&x, &routes.groups, pass)?;
        let y = ops::gated_halves(&gate_up, self.activation)?;
        let y = self.down_proj.forward(&y, &routes.groups, pass)?;
        ops::mix_rows(&y, &routes.weights, &routes.places)
    }
}

/// A router with its experts, and what all tokens share.
#[derive(Clone, Debug)]
pub struct SparseMlp {
    /// The router.
    pub router: Router,
    /// Its experts.
    pub experts: Experts,
    /// What is added to theirs.
    pub shared: Option<SharedExpert>,
    /// Noise that all of them have their input multiplied by in training.
    pub jitter: Option<DropoutSite>,
}

/// An expert that every token visits.
#[derive(Clone, Debug)]
pub struct SharedExpert {
    /// The expert.
    pub mlp: GatedMlp,
    /// How much it counts for a token: the sigmoid of this layer's one number. 1 without it.
    pub gate: Option<Linear>,
}

impl Mlp for SparseMlp {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        Ok(self.forward_routed(x, pass)?.0)
    }

    fn forward_routed(&self, x: &Value, pass: &Pass) -> Result<(Value, Option<Value>)> {
        let x = &self.jitter.map_or(Ok(x.clone()), |jitter| jitter.jitter(x, pass))?;
        let (routes, logits) = self.router.forward(x, pass)?;
        let y = self.experts.forward(x, &routes, pass)?;
        let y = match &self.shared {
            Some(shared) => ops::add(&y, &shared.forward(x, pass)?)?,
            None => y,
        };
        Ok((y, Some(logits)))
    }
}

impl SharedExpert {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let y = self.mlp.forward(x, pass)?;
        let Some(gate) = &self.gate else { return Ok(y) };
        let weights = ops::activation(&gate.forward(x, pass)?, Activation::Sigmoid)?;
        let rows: Arc<[usize]> = (0..weights.data().elem_count()).collect();
        ops::mix_rows(&y, &weights, &rows)
    }
}
