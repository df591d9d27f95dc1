//! A tag for each word. Reference: transformers `examples/pytorch/token-classification`,
//! `tokenize_and_align_labels`: a word's first token carries its tag.

use super::boxes::boxes_of;
use super::{Example, IGNORE_INDEX, LabelSet, Labels, TextEncoder, unfit};
use crate::error::RowProblem;
use crate::formats::Sample;

impl TextEncoder {
    /// Words with their tags on the first token of each; special tokens and the rest of a word
    /// carry none.
    /// # Errors
    /// A sample of another kind, or a tag that isn't in the set.
    pub fn tagging(&self, sample: &Sample, tags: &LabelSet) -> Result<Example, RowProblem> {
        let Sample::Tagging(row) = sample else {
            return Err(unfit("tagged words (`formatting: tagging`)"));
        };
        let encoding = self.tokenizer.encode_words(&row.tokens)?;
        let kept = self.cut(&encoding)?;
        let labels = match &row.tags {
            None => Labels::None,
            Some(names) => {
                let ids = names.iter().map(|name| tags.id(name)).collect::<Result<Vec<_>, _>>()?;
                Labels::Tokens(tag_labels(&kept.words, &ids))
            }
        };
        let words = kept.words.iter().map(|word| word.map(|word| word as usize));
        let boxes = row.boxes.as_deref();
        let boxes = boxes.map(|boxes| boxes_of(&self.tokenizer, &kept.ids, words, boxes));
        Ok(Example { boxes, ..self.example(kept, encoding.len(), labels, &row.at) })
    }
}

/// A label for each token: the tag of its word if it is the word's first token.
fn tag_labels(words: &[Option<u32>], tags: &[usize]) -> Vec<i32> {
    let mut before = None;
    let mut label = |word: Option<u32>| {
        let is_first = word.is_some() && word != before;
        before = word;
        let tag = word.filter(|_| is_first).and_then(|w| tags.get(w as usize));
        tag.and_then(|tag| i32::try_from(*tag).ok()).unwrap_or(IGNORE_INDEX)
    };
    words.iter().map(|word| label(*word)).collect()
}
