//! Samples put end to end: what a model runs in one go, without a single padded position.

use crate::encode::{Example, IGNORE_INDEX, Labels};
use crate::error::{RowProblem, RowRef};

/// Token-labelled sequences, one after the other. Attention stays inside each one and positions
/// start at 0 in each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// All tokens.
    pub input_ids: Vec<u32>,
    /// A label for each token, [`IGNORE_INDEX`] where nothing is trained.
    pub labels: Vec<i32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Where each sequence comes from.
    pub sources: Vec<RowRef>,
}

impl Batch {
    /// Puts examples end to end. Tokens of an example without any label are not trained.
    /// # Errors
    /// An example whose labels aren't on its tokens.
    pub fn of<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Result<Self, RowProblem> {
        let mut batch = Self::default();
        for example in examples {
            let length = example.input_ids.len();
            batch.input_ids.extend(&example.input_ids);
            match &example.labels {
                Labels::Tokens(labels) if labels.len() == length => batch.labels.extend(labels),
                Labels::None => batch.labels.extend(std::iter::repeat_n(IGNORE_INDEX, length)),
                _ => {
                    let message = "the labels aren't one for each token".to_owned();
                    return Err(RowProblem::Other { message });
                }
            }
            batch.lengths.push(length);
            batch.sources.push(example.source.clone());
        }
        Ok(batch)
    }

    /// The position of each token in its own sequence.
    #[must_use]
    pub fn position_ids(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|length| (0u32..).take(*length)).collect()
    }

    /// Tokens that a causal model is trained to predict: labels, except on the first token of a
    /// sequence, which nothing predicts.
    #[must_use]
    pub fn causal_targets(&self) -> usize {
        let mut rest = self.labels.as_slice();
        let mut targets = 0;
        for length in &self.lengths {
            let (sequence, after) = rest.split_at((*length).min(rest.len()));
            targets += sequence.iter().skip(1).filter(|l| **l != IGNORE_INDEX).count();
            rest = after;
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_and_first_tokens_are_not_targets() {
        let source = RowRef { file: std::path::Path::new("a").into(), row: 0, line: None };
        let example = |ids: &[u32], labels: &[i32]| Example {
            input_ids: ids.to_vec(),
            labels: Labels::Tokens(labels.to_vec()),
            token_type_ids: None,
            source: source.clone(),
            cut: 0,
        };
        let batch =
            Batch::of(&[example(&[5, 6, 7], &[5, -100, 7]), example(&[8, 9], &[8, 9])]).unwrap();
        assert_eq!(batch.position_ids(), [0, 1, 2, 0, 1]);
        assert_eq!((batch.lengths.as_slice(), batch.causal_targets()), (&[3, 2][..], 2));
        let span = Example { labels: Labels::Span { start: 0, end: 0 }, ..example(&[1], &[1]) };
        assert!(Batch::of(&[span]).is_err());
    }
}
