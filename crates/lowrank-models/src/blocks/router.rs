//! Routers: which experts each token visits (arXiv:1701.06538).

use std::{ops::Range, sync::Arc};

use lowrank_autograd::{
    Result, Value,
    ops::{self, Routing},
};
use lowrank_peft::{Pass, layers::Linear};

use crate::Builder;

/// A matrix whose products with a token say how well each expert suits it.
#[derive(Clone, Debug)]
pub struct Router {
    weight: Linear,
    experts: usize,
    routing: Routing,
}

impl Router {
    /// `gate` at `b`, for so many experts.
    ///
    /// # Errors
    /// When the weight is missing or misshapen.
    pub fn build(
        experts: usize,
        hidden_size: usize,
        routing: Routing,
        b: &Builder,
    ) -> crate::Result<Self> {
        Ok(Self { weight: b.router("gate", experts, hidden_size)?, experts, routing })
    }

    /// The same router with one number for each expert that is added to its score before the choice.
    #[must_use]
    pub fn biased(self, bias: Arc<[f32]>) -> Self {
        Self { routing: Routing { bias: Some(bias), ..self.routing }, ..self }
    }

    /// The routes of the tokens `x` `[n, hidden_size]`, and the logits `[n, experts]` behind them.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, pass: &Pass) -> Result<(Routes, Value)> {
        let logits = self.weight.logits(x, pass)?;
        let (weights, chosen) = ops::route(&logits, &self.routing)?;
        Ok((Routes::new(weights, &chosen, self.experts), logits))
    }
}

/// What is added to the loss of tokens so that experts are visited evenly (arXiv:2101.03961).
#[derive(Clone, Copy, Debug)]
pub struct Balance {
    /// `router_aux_loss_coef`
    pub factor: f32,
    /// Experts of each router.
    pub experts: usize,
    /// Those that a token goes to.
    pub chosen: usize,
}

impl Balance {
    /// What the logits `[n, routers·experts]` of all routers give.
    ///
    /// # Errors
    /// When they aren't such rows.
    pub fn loss(self, logits: &Value) -> Result<Value> {
        let rows = logits.data().elem_count() / self.experts.max(1);
        let logits = ops::reshape(logits, &[rows, self.experts])?;
        ops::scale(&ops::balance(&logits, self.chosen)?, self.factor)
    }
}

/// The visits of a batch's tokens to experts, sorted by expert.
#[derive(Clone, Debug)]
pub struct Routes {
    /// How much each expert of a token counts, `[n, k]`.
    pub weights: Value,
    /// The token of each visit.
    pub tokens: Arc<[usize]>,
    /// The visits to each expert.
    pub groups: Arc<[Range<usize>]>,
    /// The visit that belongs to each of `weights`.
    pub places: Arc<[usize]>,
}

impl Routes {
    /// The routes of tokens whose `chosen` experts belong to `weights`, one to one; each of them is
    /// below `experts`.
    fn new(weights: Value, chosen: &[usize], experts: usize) -> Self {
        let each = chosen.len() / weights.dims().first().copied().unwrap_or_default().max(1);
        let mut ends = vec![0; experts];
        chosen.iter().for_each(|expert| ends[*expert] += 1);
        let mut start = 0;
        let groups: Arc<[Range<usize>]> = ends
            .iter()
            .map(|visits| {
                start += visits;
                start - visits..start
            })
            .collect();
        let mut next: Vec<usize> = groups.iter().map(|group| group.start).collect();
        let (mut places, mut tokens) = (vec![0; chosen.len()], vec![0; chosen.len()]);
        for (visit, &expert) in chosen.iter().enumerate() {
            places[visit] = next[expert];
            tokens[next[expert]] = visit / each.max(1);
            next[expert] += 1;
        }
        let tokens = tokens.into();
        Self { weights, tokens, groups, places: places.into() }
    }
}
