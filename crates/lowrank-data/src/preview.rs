//! An encoded row as text again, with what is trained told apart.

use std::ops::Range;

use crate::encode::{Example, IGNORE_INDEX, Labels};
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// A run of tokens that are all trained or all not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Their text, special tokens included.
    pub text: String,
    /// Whether they are trained.
    pub trained: bool,
    /// Their positions.
    pub tokens: Range<usize>,
}

/// The runs of an example; without labels on its tokens it is one run.
/// # Errors
/// Ids that the tokenizer can't decode.
pub fn segments(tokenizer: &Tokenizer, example: &Example) -> Result<Vec<Segment>> {
    let labels = match &example.labels {
        Labels::Tokens(labels) => labels.as_slice(),
        _ => &[],
    };
    let is_trained = |i: usize| labels.get(i).is_some_and(|l| *l != IGNORE_INDEX);
    let mut segments = Vec::new();
    let mut start = 0;
    for end in 1..=example.input_ids.len() {
        if end < example.input_ids.len() && is_trained(end) == is_trained(start) {
            continue;
        }
        let ids = example.input_ids.get(start..end).unwrap_or_default();
        let text = tokenizer.decode(ids, false)?;
        segments.push(Segment { text, trained: is_trained(start), tokens: start..end });
        start = end;
    }
    Ok(segments)
}
