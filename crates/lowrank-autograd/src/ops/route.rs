//! Routing: which experts a token goes to, and how much each of them counts.
//!
//! `p = softmax(z)` or `σ(z)` of the router's logits; a token goes to the experts with the largest
//! `p + b`, within its best groups where there are some (arXiv:2412.19437), and
//! `w_j = s·p_j` or `s·p_j/Σp` over the chosen ones. The choice has no gradient. With
//! `g_j = s·dw_j`, normalized `g_j = s·(dw_j - Σ dw·p/Σp)/Σp`: `dz = p·(g - Σ g·p)` or
//! `g·p·(1 - p)`, where `g` is 0 for experts that weren't chosen.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    Error, Result, Value, composed,
    kernels::{
        F32, check_dims, dims2,
        elementwise::lanes_sum,
        rows::gather,
        simd::{exp, sigmoid, vectorized},
        tensor,
    },
    profile,
};

const OP: &str = "route";
/// Added to the sum of weights before it divides, as transformers does.
const TINY: f32 = 1e-20;
/// Rows that are worth a task.
const ROWS: usize = 64;

/// What a router's logits are turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Over all experts.
    Softmax,
    /// Each by itself.
    Sigmoid,
}

/// How tokens are routed.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `p`
    pub score: Score,
    /// Experts that a token goes to.
    pub chosen: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalized: bool,
    /// `s`
    pub scale: f32,
    /// `b`, one number for each expert.
    pub bias: Option<Arc<[f32]>>,
    /// Into how many groups the experts fall, and in how many of them a token may have experts: the
    /// best by the sum of their two largest `p + b`.
    pub groups: Option<(usize, usize)>,
}

impl Routing {
    /// The experts of one token, given their `p`, the best first; of equal ones the first.
    fn choose(&self, p: &[f32]) -> Vec<usize> {
        if self.bias.is_none() && self.groups.is_none() {
            return largest(p, self.chosen);
        }
        let bias = |e: usize| self.bias.as_ref().and_then(|b| b.get(e)).copied().unwrap_or(0.0);
        let mut rank: Vec<f32> = p.iter().enumerate().map(|(e, p)| p + bias(e)).collect();
        if let Some((groups, open)) = self.groups {
            let size = (p.len() / groups.max(1)).max(1);
            let best_two = |group: &[f32]| largest(group, 2).iter().map(|e| group[*e]).sum();
            let scores: Vec<f32> = rank.chunks_exact(size).map(best_two).collect();
            let open = largest(&scores, open);
            let closed = (0..groups).filter(|g| !open.contains(g));
            closed.for_each(|g| rank[g * size..(g + 1) * size].fill(f32::NEG_INFINITY));
        }
        largest(&rank, self.chosen)
    }

    fn check(&self, experts: usize) -> Result<()> {
        let of_groups = self.groups.is_none_or(|(groups, open)| {
            groups > 0 && experts.is_multiple_of(groups) && (1..=groups).contains(&open)
        });
        let open = self.groups.map_or(experts, |(groups, open)| experts / groups.max(1) * open);
        let biased = self.bias.as_ref().is_none_or(|b| b.len() == experts);
        if of_groups && biased && (1..=open).contains(&self.chosen) {
            return Ok(());
        }
        let must_be = format!("enough experts, biases and groups for {self:?}");
        Err(Error::Shape { op: OP, what: "the logits", found: vec![experts], must_be })
    }
}

/// Places of the `n` largest, in descending order; of equal ones the first comes first.
pub(super) fn largest(values: &[f32], n: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(n + 1);
    for (place, value) in values.iter().enumerate() {
        let behind = found.iter().rposition(|f| values[*f].total_cmp(value).is_ge());
        let at = behind.map_or(0, |behind| behind + 1);
        if at < n {
            found.insert(at, place);
            found.truncate(n);
        }
    }
    found
}

/// Weights `[n, chosen]` of the experts that each row of `logits` `[n, experts]` goes to, and which
/// these are, row by row.
///
/// # Errors
/// When there are fewer experts than the routing asks for.
pub fn route(logits: &Value, routing: &Routing) -> Result<(Value, Arc<[usize]>)> {
    let _time = profile::scope(OP);
    let (n, experts) = dims2(OP, "the logits", logits.data())?;
    routing.check(experts)?;
    if let Some(device) = composed::device([logits.data()]) {
        return composed::route(logits, routing, &device);
    }
    let z = logits.data().contiguous()?;
    let p = scores(&F32::of(OP, &z)?, experts, routing.score);
    let Routing { chosen: k, scale, normalized, score, .. } = *routing;
    let (mut chosen, mut w) = (vec![0; n * k], vec![0.0; n * k]);
    let rows = chosen.par_chunks_exact_mut(k).zip(w.par_chunks_exact_mut(k));
    rows.zip(p.par_chunks_exact(experts)).with_min_len(ROWS).for_each(|((chosen, w), p)| {
        chosen.copy_from_slice(&routing.choose(p));
        let total = if normalized { total(p, chosen) } else { 1.0 };
        w.iter_mut().zip(chosen).for_each(|(w, e)| *w = p[*e] / total * scale);
    });
    let chosen: Arc<[usize]> = chosen.into();
    let w = Value::record(OP, tensor(w, &[n, k])?, [logits], |_| {
        let chosen = Arc::clone(&chosen);
        move |dw: Tensor| {
            check_dims(OP, "the gradient", &dw, &[n, k])?;
            let dw = dw.contiguous()?;
            let dw = F32::of(OP, &dw)?;
            let dz = gather(n, experts, |row, dz| {
                let (p, chosen) = (&p[row * experts..][..experts], &chosen[row * k..][..k]);
                let dw = &dw[row * k..][..k];
                let total = if normalized { total(p, chosen) } else { 1.0 };
                let shared: f32 = match normalized {
                    true => dw.iter().zip(chosen).map(|(d, e)| d * p[*e]).sum::<f32>() / total,
                    false => 0.0,
                };
                for (d, &e) in dw.iter().zip(chosen) {
                    dz[e] = scale * (d - shared) / total;
                }
                through(score, p, dz);
            });
            Ok([Some(tensor(dz, &[n, experts])?)])
        }
    });
    Ok((w, chosen))
}

/// `p` of every row.
pub(super) fn scores(z: &[f32], experts: usize, score: Score) -> Vec<f32> {
    vectorized! {
        fn sigmoids(p: &mut [f32], z: &[f32]) {
            p.iter_mut().zip(z).for_each(|(p, z)| *p = sigmoid(*z));
        }
    }
    vectorized! {
        fn softmax(p: &mut [f32], z: &[f32]) {
            let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            p.iter_mut().zip(z).for_each(|(p, z)| *p = exp(z - top));
            let total = lanes_sum(p, f64::from) as f32;
            p.iter_mut().for_each(|p| *p /= total);
        }
    }
    gather(z.len() / experts, experts, |row, p| {
        let z = &z[row * experts..][..experts];
        match score {
            Score::Sigmoid => sigmoids(p, z),
            Score::Softmax => softmax(p, z),
        }
    })
}

fn total(p: &[f32], chosen: &[usize]) -> f32 {
    chosen.iter().map(|e| p[*e]).sum::<f32>() + TINY
}

/// The gradient of a row's `p`, in place that of its logits.
pub(super) fn through(score: Score, p: &[f32], g: &mut [f32]) {
    match score {
        Score::Sigmoid => g.iter_mut().zip(p).for_each(|(g, p)| *g *= p * (1.0 - p)),
        Score::Softmax => {
            let mean: f32 = g.iter().zip(p).map(|(g, p)| g * p).sum();
            g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - mean));
        }
    }
}
