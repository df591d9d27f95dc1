//! An encoded row as text again, with what is trained told apart.

use std::ops::Range;

use crate::encode::Example;
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
    let is_trained = |i: usize| example.is_trained(i);
    let mut segments = Vec::new();
    let mut start = 0;
    for end in 1..=example.input_ids.len() {
        if end < example.input_ids.len() && is_trained(end) == is_trained(start) {
            continue;
        }
        let text = decode(tokenizer, example, start..end)?;
        segments.push(Segment { text, trained: is_trained(start), tokens: start..end });
        start = end;
    }
    Ok(segments)
}

/// A token, or several that only together make whole characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The tokens, by position.
    pub tokens: Range<usize>,
    /// Whether all of them are trained.
    pub trained: bool,
}

/// The tokens of an example one by one. Bytes of a character are kept together, unless only some
/// of them are trained.
/// # Errors
/// Ids that the tokenizer can't decode.
pub fn pieces(tokenizer: &Tokenizer, example: &Example) -> Result<Vec<Piece>> {
    /// Tokens that one character may take.
    const MOST: usize = 4;
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < example.input_ids.len() {
        let trained = example.is_trained(start);
        let mut end = start + 1;
        let mut text = decode(tokenizer, example, start..end)?;
        while text.ends_with('\u{fffd}')
            && end - start < MOST
            && end < example.input_ids.len()
            && example.is_trained(end) == trained
        {
            end += 1;
            text = decode(tokenizer, example, start..end)?;
        }
        pieces.push(Piece { text, tokens: start..end, trained });
        start = end;
    }
    Ok(pieces)
}

fn decode(tokenizer: &Tokenizer, example: &Example, tokens: Range<usize>) -> Result<String> {
    tokenizer.decode(example.input_ids.get(tokens).unwrap_or_default(), false)
}
