//! Cuts an encoding to a length, special tokens included, as transformers' `truncation` does.
//! Reference: tokenizers `utils/truncation.rs`.
//!
//! The library's own truncation (0.23.2) stops tokenizing at the limit, so that windows over the
//! rest of a context get lost. Here the whole text is encoded, and positions are chosen.

use std::ops::Range;

use tokenizers::Encoding;

use crate::error::RowProblem;

/// An encoding and where its one or two texts stand in it.
pub(super) struct Cut<'a> {
    encoding: &'a Encoding,
    texts: [Range<usize>; 2],
    from_left: bool,
}

/// Some positions of an encoding.
pub(super) struct Kept {
    /// Token ids.
    pub(super) ids: Vec<u32>,
    /// 0 for the first text, 1 for the second.
    pub(super) type_ids: Vec<u32>,
    /// The word of each token, where the text was given in words.
    pub(super) words: Vec<Option<u32>>,
    /// Bytes in the first text, for its tokens.
    pub(super) first: Vec<Option<(usize, usize)>>,
    /// Bytes in the second text, for its tokens.
    pub(super) second: Vec<Option<(usize, usize)>>,
}

impl<'a> Cut<'a> {
    pub(super) fn new(encoding: &'a Encoding, from_left: bool) -> Self {
        let sequences = encoding.get_sequence_ids();
        let text = |id: usize| {
            let mut positions =
                (0..sequences.len()).filter(|i| sequences.get(*i) == Some(&Some(id)));
            match positions.next() {
                Some(first) => first..positions.next_back().unwrap_or(first) + 1,
                None => 0..0,
            }
        };
        Self { encoding, texts: [text(0), text(1)], from_left }
    }

    fn special_tokens(&self) -> usize {
        self.encoding.len() - self.texts[0].len() - self.texts[1].len()
    }

    /// Cuts from the longer text until it is as short as the other, then from both.
    pub(super) fn longest_first(&self, max_length: usize) -> Result<Kept, RowProblem> {
        let special = self.special_tokens();
        let room = max_length.checked_sub(special).filter(|room| *room > 0).ok_or_else(|| {
            let message =
                format!("{max_length} tokens have no room beside {special} special tokens");
            RowProblem::Other { message }
        })?;
        let [first, second] = [0, 1].map(|i| self.texts[i].len());
        let (short, long) = (first.min(second), first.max(second));
        let (mut short_kept, mut long_kept) = (short, long);
        if short + long > room {
            long_kept = if short > room { short } else { short.max(room - short) };
            if short + long_kept > room {
                short_kept = room / 2;
                long_kept = short_kept + room % 2;
            }
        }
        // Of equal lengths the second counts as the longer one.
        let kept = if first > second { [long_kept, short_kept] } else { [short_kept, long_kept] };
        let keep = |i: usize| self.end_of(&self.texts[i], kept[i]);
        Ok(self.keep(&[keep(0), keep(1)]))
    }

    /// Windows over the second text that share `stride` tokens; the first text stays whole.
    /// None if a window has no room for more than it shares.
    pub(super) fn windows(&self, max_length: usize, stride: usize) -> Option<Vec<Kept>> {
        let [first, second] = &self.texts;
        if self.encoding.len() <= max_length {
            return Some(vec![self.keep(&self.texts)]);
        }
        let size = max_length.checked_sub(self.special_tokens() + first.len())?;
        let step = size.checked_sub(stride).filter(|step| *step > 0)?;
        let mut windows = Vec::new();
        let mut taken = 0;
        loop {
            let end = (taken + size).min(second.len());
            let window = if self.from_left {
                second.end - end..second.end - taken
            } else {
                second.start + taken..second.start + end
            };
            windows.push(self.keep(&[first.clone(), window]));
            if end == second.len() {
                return Some(windows);
            }
            taken += step;
        }
    }

    /// `count` tokens of a text, from the side that is kept.
    fn end_of(&self, text: &Range<usize>, count: usize) -> Range<usize> {
        if self.from_left { text.end - count..text.end } else { text.start..text.start + count }
    }

    /// The special tokens and these parts of the texts.
    fn keep(&self, parts: &[Range<usize>; 2]) -> Kept {
        let is_text = |i: usize| self.texts.iter().any(|text| text.contains(&i));
        let is_kept = |i: &usize| !is_text(*i) || parts.iter().any(|part| part.contains(i));
        let positions: Vec<usize> = (0..self.encoding.len()).filter(is_kept).collect();
        let offsets = self.encoding.get_offsets();
        let within = |text: usize| {
            let own = |i: &usize| self.texts[text].contains(i);
            positions.iter().map(|i| offsets.get(*i).copied().filter(|_| own(i))).collect()
        };
        let number = |all: &[u32], i: usize| all.get(i).copied().unwrap_or(0);
        Kept {
            ids: positions.iter().map(|i| number(self.encoding.get_ids(), *i)).collect(),
            type_ids: positions.iter().map(|i| number(self.encoding.get_type_ids(), *i)).collect(),
            words: positions
                .iter()
                .map(|i| {
                    self.encoding.get_word_ids().get(*i).copied().flatten().filter(|_| is_text(*i))
                })
                .collect(),
            first: within(0),
            second: within(1),
        }
    }
}
