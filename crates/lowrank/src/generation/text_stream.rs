//! Token ids into text as they come. A token can be a part of a character, and what a token says
//! can depend on the one before it, so text is only handed on once it can't change any more.
//!
//! The method is that of Hugging Face's text-generation-inference: decode a window that begins
//! before what was handed on, and hand on what it says beyond that.

use lowrank_data::Tokenizer;

/// Tokens before the first that decoding takes into account.
const CONTEXT: usize = 5;

/// Text under way.
pub(crate) struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Where the window begins.
    start: usize,
    /// Tokens whose text was handed on.
    done: usize,
}

impl<'a> TextStream<'a> {
    /// A stream that goes on after `before`.
    pub(crate) fn new(tokenizer: &'a Tokenizer, before: &[u32]) -> Self {
        let start = before.len().saturating_sub(CONTEXT);
        let ids = before.get(start..).unwrap_or_default().to_vec();
        Self { tokenizer, done: ids.len(), ids, start: 0 }
    }

    /// The text that is certain now that `id` is there; often empty.
    pub(crate) fn push(&mut self, id: u32) -> anyhow::Result<String> {
        self.ids.push(id);
        let (known, all) = (self.decode(self.done)?, self.decode(self.ids.len())?);
        let more = beyond(&all, &known);
        if more.is_empty() || more.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        (self.start, self.done) = (self.done, self.ids.len());
        Ok(more.to_owned())
    }

    /// What is left at the end; bytes that never became a character are U+FFFD.
    pub(crate) fn finish(self) -> anyhow::Result<String> {
        let (known, all) = (self.decode(self.done)?, self.decode(self.ids.len())?);
        Ok(beyond(&all, &known).to_owned())
    }

    fn decode(&self, end: usize) -> anyhow::Result<String> {
        let ids = self.ids.get(self.start..end).unwrap_or_default();
        Ok(self.tokenizer.decode(ids, true)?)
    }
}

/// What `all` says beyond `known`. A byte that was a character by itself can turn out to be none: a
/// run of byte tokens that isn't UTF-8 is decoded as U+FFFD for each, so that characters count, not
/// bytes.
fn beyond<'t>(all: &'t str, known: &str) -> &'t str {
    let rest = || {
        let (at, _) = all.char_indices().nth(known.chars().count())?;
        all.get(at..)
    };
    all.strip_prefix(known).or_else(rest).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_on_and_is_no_prefix_any_more_loses_nothing_behind_it() {
        assert_eq!(beyond(" Mrj and", " Mrj"), " and");
        assert_eq!(beyond(" Mr\u{fffd}\u{fffd}r", " Mrj"), "\u{fffd}r");
        assert_eq!(beyond("a", "\u{fffd}b"), "");
    }
}
