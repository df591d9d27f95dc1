//! The loss that keeps experts evenly visited (arXiv:2101.03961, equations 4 to 6):
//! `L = E/R²·Σ_e T_e·P_e`, where of `R` rows `T_e` have expert `e` among their `k` likeliest and
//! `P_e = Σ p_e`, `p = softmax(z)`. It is `k` where all experts are as likely as visited. The
//! choice has no gradient: `g_e = E·T_e/R²`, `dz = p·(g - Σ g·p)`. Saved: `p`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::route::{Score, largest, scores, through};
use crate::{
    Error, Result, Value, composed,
    kernels::{F32, dims2, elementwise::column_sums, rows::gather, tensor},
    profile,
};

const OP: &str = "balance";

/// The loss of `logits` `[rows, experts]`, a scalar, where each row goes to `chosen` experts; rows
/// may be those of several routers.
///
/// # Errors
/// When there are no rows, or fewer experts than `chosen`.
pub fn balance(logits: &Value, chosen: usize) -> Result<Value> {
    let _time = profile::scope(OP);
    let (rows, experts) = dims2(OP, "the logits", logits.data())?;
    if rows == 0 || !(1..=experts).contains(&chosen) {
        let must_be = format!("at least one row, and {chosen} experts or more");
        let found = vec![rows, experts];
        return Err(Error::Shape { op: OP, what: "the logits", found, must_be });
    }
    if let Some(device) = composed::device([logits.data()]) {
        return composed::balance(logits, chosen, &device);
    }
    let z = logits.data().contiguous()?;
    let p = scores(&F32::of(OP, &z)?, experts, Score::Softmax);
    let slopes = slopes(&p, experts, chosen);
    let sums = column_sums(&p, experts);
    let loss: f64 = slopes.iter().zip(&sums).map(|(g, p)| f64::from(*g) * f64::from(*p)).sum();
    Ok(Value::record(OP, tensor(vec![loss as f32], &[])?, [logits], |_| {
        move |dy: Tensor| {
            let dy = dy.to_scalar::<f32>()?;
            let slopes: Vec<f32> = slopes.iter().map(|g| dy * g).collect();
            let dz = gather(rows, experts, |row, dz| {
                dz.copy_from_slice(&slopes);
                through(Score::Softmax, &p[row * experts..][..experts], dz);
            });
            Ok([Some(tensor(dz, &[rows, experts])?)])
        }
    }))
}

/// `g_e`
fn slopes(p: &[f32], experts: usize, chosen: usize) -> Vec<f32> {
    let none = || vec![0_u64; experts];
    let visits = p.par_chunks_exact(experts).fold(none, |mut visits, p| {
        largest(p, chosen).into_iter().for_each(|e| visits[e] += 1);
        visits
    });
    let visits = visits.reduce(none, |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
    let rows = (p.len() / experts) as f64;
    visits.iter().map(|n| (experts as f64 * *n as f64 / (rows * rows)) as f32).collect()
}
