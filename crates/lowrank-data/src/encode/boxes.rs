//! The box of each token: its word's; special tokens have the page's first point, and `sep_token`
//! its last, as in transformers' documentation of LayoutLM (`docs/source/en/model_doc/layoutlm.md`).

use crate::formats::WordBox;
use crate::formats::boxes::PAGE;
use crate::tokenizer::{Special, Tokenizer};

/// The words of tokens, by their bytes in a text whose words are what white space separates.
pub(super) fn words_of(text: &str, offsets: &[Option<(usize, usize)>]) -> Vec<Option<usize>> {
    let from = text.as_ptr().addr();
    let starts: Vec<usize> =
        text.split_whitespace().map(|word| word.as_ptr().addr() - from).collect();
    // A token may begin with the white space before its word.
    let word = |(start, end): (usize, usize)| {
        let last = end.saturating_sub(1).max(start);
        starts.partition_point(|first| *first <= last).checked_sub(1)
    };
    offsets.iter().map(|offset| offset.and_then(word)).collect()
}

/// The boxes of tokens, of which those of a text have a word.
pub(super) fn boxes_of(
    tokenizer: &Tokenizer,
    ids: &[u32],
    words: impl IntoIterator<Item = Option<usize>>,
    boxes: &[WordBox],
) -> Vec<WordBox> {
    let sep = tokenizer.special_id(Special::Sep);
    let one = |(id, word): (&u32, Option<usize>)| match word.and_then(|word| boxes.get(word)) {
        Some(found) => *found,
        None if sep == Some(*id) => [PAGE; 4],
        None => [0; 4],
    };
    ids.iter().zip(words).map(one).collect()
}
