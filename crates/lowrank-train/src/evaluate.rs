//! The loss on held-out rows.

use lowrank_data::Example;
use lowrank_models::PeftModel;

use crate::{
    Collator, Result,
    objectives::{Objective, Passes},
};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean over all targets.
    pub loss: f64,
    /// Share of targets that were predicted right; `None` where that isn't defined.
    pub accuracy: Option<f64>,
    /// Rows evaluated.
    pub rows: usize,
}

/// Evaluates `examples` in batches of `batch_size` rows.
///
/// # Errors
/// When a row doesn't fit the model.
pub fn evaluate(
    objective: &dyn Objective,
    model: &PeftModel,
    collator: Collator,
    examples: &[Example],
    batch_size: usize,
) -> Result<Evaluation> {
    let passes = Passes::inference(model);
    let (mut sum, mut targets, mut correct) = (0.0, 0, Some(0));
    let numbered: Vec<(u64, &Example)> = (0..).zip(examples).collect();
    for rows in numbered.chunks(batch_size.max(1)) {
        let batch = collator.batch(rows)?;
        let count = batch.targets.count();
        if count == 0 {
            continue;
        }
        let loss = objective.loss(model.model(), &batch, &passes)?;
        sum += f64::from(loss.sum.data().to_scalar::<f32>()?);
        targets += count;
        correct = correct.zip(loss.correct).map(|(a, b)| a + b);
    }
    let mean = |v: f64| v / targets.max(1) as f64;
    let accuracy = correct.map(|c| mean(c as f64));
    Ok(Evaluation { loss: mean(sum), accuracy, rows: examples.len() })
}
