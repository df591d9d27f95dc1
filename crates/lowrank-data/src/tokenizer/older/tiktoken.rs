//! Vocabularies in tiktoken's form: on each line a token's bytes in base64 and its rank, which is
//! its id. The model is BPE over bytes: of all pairs of neighbours that are a token together, the
//! one of the lowest rank is joined first. References: tiktoken `load.py`; transformers 5.24
//! `convert_slow_tokenizer.py`, `TikTokenConverter`, and `tokenization_utils_tokenizers.py`,
//! `_convert_from_tiktoken`; GLM-4's own `tokenization_chatglm.py`.

use std::{collections::HashMap, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokenizers::{
    AddedToken, Tokenizer as Inner,
    models::{
        ModelWrapper,
        bpe::{BPE, Merges, Vocab},
    },
};

use super::{Draft, stages, vocabulary};
use crate::error::{DataError, Result};

/// The longest token that is read; those of real vocabularies have at most 128 bytes.
const LONGEST: usize = 1024;

/// A vocabulary: the bytes of each token, by rank.
pub(super) struct Ranked(Vec<Vec<u8>>);

impl Ranked {
    /// Reads a file; `None` if it is of another form.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
        let Ok(text) = std::str::from_utf8(&bytes) else { return Ok(None) };
        if text.lines().next().and_then(parse).is_none() {
            return Ok(None);
        }
        let mut tokens = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.is_empty()) {
            let wrong = |message: &str| DataError::Syntax {
                path: path.to_owned(),
                line: number,
                message: message.to_owned(),
            };
            let (token, rank) = parse(line)
                .ok_or_else(|| wrong("isn't a token in base64 and its rank, as before"))?;
            if token.is_empty() || token.len() > LONGEST {
                return Err(wrong(&format!("the token has {} bytes", token.len())));
            }
            tokens.push((rank, token));
        }
        tokens.sort_unstable();
        if let Some((rank, _)) = (0..).zip(&tokens).find(|(rank, (own, _))| rank != own) {
            let message = format!("rank {rank} is there twice, or no token has it");
            return Err(DataError::file(path, message));
        }
        let ranked = Self(tokens.into_iter().map(|(_, token)| token).collect());
        ranked.check().map_err(|message| DataError::file(path, message))?;
        Ok(Some(ranked))
    }

    /// An error, in words, unless all bytes are tokens, and no token is there twice.
    fn check(&self) -> std::result::Result<(), String> {
        let ranks = self.ranks();
        if ranks.len() < self.0.len() {
            return Err("a token is there twice".to_owned());
        }
        match (0..=255).find(|byte: &u8| !ranks.contains_key([*byte].as_slice())) {
            Some(byte) => Err(format!("byte {byte:#04x} isn't a token")),
            None => Ok(()),
        }
    }

    fn ranks(&self) -> HashMap<&[u8], u32> {
        (0..).zip(&self.0).map(|(rank, token)| (token.as_slice(), rank)).collect()
    }

    /// The model. Each way to put a token together from two others is a merge, the token with the
    /// lower rank first, then the lower ranks of the two.
    fn byte_pairs(&self, path: &Path) -> Result<ModelWrapper> {
        let (ranks, alphabet) = (self.ranks(), alphabet());
        let shown = |bytes: &[u8]| bytes.iter().map(|byte| alphabet[usize::from(*byte)]).collect();
        let mut merges = Merges::new();
        for token in &self.0 {
            let splits = (1..token.len()).filter_map(|at| {
                let (left, right) = token.split_at_checked(at)?;
                Some(((*ranks.get(left)?, *ranks.get(right)?), (left, right)))
            });
            let mut splits: Vec<_> = splits.collect();
            splits.sort_unstable();
            merges.extend(splits.into_iter().map(|(_, (l, r))| (shown(l), shown(r))));
        }
        let vocab: Vocab = ranks.iter().map(|(token, rank)| (shown(token), *rank)).collect();
        let builder = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true);
        vocabulary::bpe(path, builder)
    }
}

/// A line's token and rank.
fn parse(line: &str) -> Option<(Vec<u8>, u32)> {
    let (token, rank) = line.trim_end().split_once(' ')?;
    Some((STANDARD.decode(token).ok()?, rank.parse().ok()?))
}

/// The character that each byte is written as: its own where that can be seen, otherwise one of
/// those from U+0100 on (GPT-2's `bytes_to_unicode`).
fn alphabet() -> [char; 256] {
    let is_seen = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = '\u{100}'..;
    std::array::from_fn(|i| match u8::try_from(i) {
        Ok(byte) if is_seen(byte) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
}

impl Draft<'_> {
    /// The tokenizer of such a vocabulary, with the tokens that files put behind it: ids between
    /// them stand for nothing.
    pub(super) fn ranked(&self, vocabulary: &Ranked) -> Result<Inner> {
        let mut inner = Inner::new(vocabulary.byte_pairs(&self.path)?);
        let cut = vec![
            stages::split_regex(stages::TIKTOKEN_WORDS),
            stages::byte_level(false, true, false),
        ];
        self.set(stages::cut(&mut inner, cut))?;
        self.set(stages::decode(&mut inner, vec![stages::byte_level(true, true, true)]))?;
        let first = u32::try_from(vocabulary.0.len()).map_err(|e| self.error(e))?;
        let last = self.tokens.by_id.last_key_value().map_or(0, |(id, _)| *id);
        if last.saturating_sub(first) > MOST_BEHIND {
            let message = format!("the vocabulary ends at {first}; an added token has id {last}");
            return Err(self.error(message));
        }
        let name = |id: u32| match self.tokens.by_id.get(&id) {
            Some(token) => token.content.clone(),
            None => format!("<|reserved_token_{id}|>"),
        };
        let mut behind: Vec<String> = (first..=last).map(name).collect();
        for token in self.tokens.extra() {
            if !behind.contains(&token.content) {
                behind.push(token.content.clone());
            }
        }
        let behind = behind.into_iter().map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(behind).map_err(|e| self.error(e))?;
        Ok(inner)
    }
}

/// Most ids behind a vocabulary: Llama 3 has 256.
const MOST_BEHIND: u32 = 1 << 16;
