//! What a template changes in the tokenizer. Reference: LLaMA-Factory 0.9.5
//! `data/template.py`, `fix_special_tokens`.

use super::Template;
use crate::error::Result;
use crate::tokenizer::{Special, Tokenizer};

/// What was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFixes {
    /// The new `eos_token`, if it was replaced or missing.
    pub eos: Option<String>,
    /// The new `pad_token`, if it was missing.
    pub pad: Option<String>,
    /// Tokens that the vocabulary didn't have; the model's embedding must have room for them.
    pub added: Vec<String>,
}

impl Template {
    /// Makes the tokenizer fit: `replace_eos` templates end answers with their first stop word,
    /// the other stop words become special tokens, and a missing `eos_token` or `pad_token` is
    /// supplied.
    /// # Errors
    /// A vocabulary that can't take a token.
    pub fn fix_tokenizer(&self, tokenizer: &mut Tokenizer) -> Result<TokenizerFixes> {
        let mut fixes = TokenizerFixes::default();
        let mut stop_words = self.stop_words.iter();
        if self.replace_eos
            && let Some(eos) = stop_words.next()
        {
            set(tokenizer, &mut fixes, Special::Eos, eos)?;
        }
        supply_missing(tokenizer, &mut fixes)?;
        for word in stop_words {
            if tokenizer.add_special_token(word)? {
                fixes.added.push(word.clone());
            }
            tokenizer.add_stop_token(word);
        }
        Ok(fixes)
    }
}

/// `<|endoftext|>` for a missing `eos_token`, and `eos_token` for a missing `pad_token`.
pub(crate) fn supply_missing(tokenizer: &mut Tokenizer, fixes: &mut TokenizerFixes) -> Result<()> {
    if tokenizer.special(Special::Eos).is_none() {
        set(tokenizer, fixes, Special::Eos, "<|endoftext|>")?;
    }
    if tokenizer.special(Special::Pad).is_none() {
        let eos = tokenizer.special(Special::Eos).unwrap_or("<|endoftext|>").to_owned();
        set(tokenizer, fixes, Special::Pad, &eos)?;
    }
    Ok(())
}

fn set(
    tokenizer: &mut Tokenizer,
    fixes: &mut TokenizerFixes,
    which: Special,
    token: &str,
) -> Result<()> {
    if tokenizer.set_special(which, token)? {
        fixes.added.push(token.to_owned());
    }
    let slot = if which == Special::Eos { &mut fixes.eos } else { &mut fixes.pad };
    *slot = Some(token.to_owned());
    Ok(())
}
