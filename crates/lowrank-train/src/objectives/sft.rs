//! Supervised fine-tuning: cross-entropy on target tokens for language models, and the losses of
//! transformers' heads for classification, tagging and extractive question answering
//! (transformers `loss/loss_utils.py`).

use std::sync::Arc;

use lowrank_autograd::{
    Value,
    ops::{self, ScoredTargets},
};
use lowrank_models::{Input, Model};

use super::{Loss, Objective, Passes};
use crate::{Batch, Error, Result, Targets};

/// Supervised fine-tuning.
#[derive(Clone, Copy, Debug)]
pub struct Sft;

impl Objective for Sft {
    fn loss(&self, model: &Model, batch: &Batch, passes: &Passes) -> Result<Loss> {
        let logits = || logits(model, batch, None, passes);
        Ok(match &batch.targets {
            Targets::Tokens { rows, classes } => token_loss(model, batch, (rows, classes), passes)?,
            Targets::Classes(classes) => ops::scored_cross_entropy(&logits()?, classes)?.into(),
            Targets::Flags(flags) => {
                Loss { sum: ops::binary_cross_entropy(&logits()?, flags)?, correct: None }
            }
            Targets::Numbers(numbers) => {
                Loss { sum: ops::squared_error(&logits()?, numbers)?, correct: None }
            }
            Targets::Spans(spans) => span_loss(&logits()?, &batch.input, spans)?,
        })
    }
}

impl From<ScoredTargets> for Loss {
    fn from(scored: ScoredTargets) -> Self {
        Self { sum: scored.sum, correct: Some(scored.correct) }
    }
}

/// Cross-entropy of tokens, by the head itself: it needn't hold all logits at once. A penalty,
/// which is added to means, goes in once for each target: where a step has several micro-batches,
/// those of all are averaged by their targets.
fn token_loss(
    model: &Model,
    batch: &Batch,
    targets: (&Arc<[usize]>, &Arc<[u32]>),
    passes: &Passes,
) -> Result<Loss> {
    let Some(target) = &batch.decoder_input else {
        let (input, pass) = (&batch.input, &passes.input);
        let (hidden, penalty) = model.hidden_with_penalty(input, pass)?;
        let loss = Loss::from(model.head().cross_entropy(&hidden, input, targets, pass)?);
        let Some(penalty) = penalty else { return Ok(loss) };
        let penalty = ops::scale(&penalty, targets.1.len() as f32)?;
        return Ok(Loss { sum: ops::add(&loss.sum, &penalty)?, ..loss });
    };
    let (source, pass) = ((&batch.input, &passes.input), &passes.decoder);
    let hidden = model.target_hidden(source, (target, pass))?;
    Ok(model.head().cross_entropy(&hidden, target, targets, pass)?.into())
}

/// Logits of a batch: of `rows` if the head is one of tokens.
///
/// # Errors
/// When the batch doesn't fit the model.
pub fn logits(
    model: &Model,
    batch: &Batch,
    rows: Option<&Arc<[usize]>>,
    passes: &Passes,
) -> Result<Value> {
    Ok(match &batch.decoder_input {
        None => model.logits(&batch.input, rows, &passes.input)?,
        Some(decoder_input) => {
            let (source, target) =
                ((&batch.input, &passes.input), (decoder_input, &passes.decoder));
            model.target_logits(source, target, rows)?
        }
    })
}

/// Half the cross-entropy of the start among a sequence's tokens, and half that of the end. Where
/// only some sequences count, the mean over those stands for all, as in transformers.
fn span_loss(logits: &Value, input: &Input, spans: &[[Option<usize>; 2]]) -> Result<Loss> {
    let mut sum: Option<Value> = None;
    let mut right = vec![true; spans.len()];
    for side in 0..2 {
        let column = ops::columns(logits, side..side + 1)?;
        let counted = spans.iter().filter(|s| s.get(side).is_some_and(Option::is_some)).count();
        let weight = 0.5 * spans.len() as f32 / counted.max(1) as f32;
        let rows = input.sequences.spans.iter().zip(spans.iter().zip(&mut right));
        for (sequence, (span, right)) in rows {
            let Some(place) = span.get(side).copied().flatten() else { continue };
            let own: Arc<[usize]> = sequence.queries.clone().collect();
            let own = ops::select_rows(&column, &own)?;
            let row = ops::reshape(&own, &[1, sequence.queries.len()])?;
            let place = u32::try_from(place).map_err(|e| Error::Batch(e.to_string()))?;
            let scored = ops::scored_cross_entropy(&row, &[place].into())?;
            *right &= scored.correct == 1;
            let part = ops::scale(&scored.sum, weight)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &part)?,
                None => part,
            });
        }
    }
    let sum = sum.ok_or_else(|| Error::Batch("no row of the batch has an answer".to_owned()))?;
    Ok(Loss { sum, correct: Some(right.iter().filter(|r| **r).count()) })
}
