//! A tokenizer from what a SentencePiece model says of itself, where no class says more.
//! Reference: transformers 5.24 `convert_slow_tokenizer.py`, `build_tokenizer_from_spm_proto`, and
//! `tokenization_utils_tokenizers.py`, `_convert_from_sentencepiece`.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};
use tokenizers::{
    AddedToken, Tokenizer as Inner,
    models::{ModelWrapper, bpe::BPE},
};

use super::{
    Draft,
    sentencepiece::{Model, Piece},
    stages::{self, SPACE},
    vocabulary,
};
use crate::{error::Result, tokenizer::Special};

/// Builds the tokenizer, and names the special tokens that the model names.
pub(super) fn build(draft: &mut Draft<'_>, model: &Model) -> Result<Inner> {
    let names = names(draft, model);
    if model.normalizer.add_dummy_prefix() {
        // Found in the raw text, so that what follows one begins with a space of its own.
        draft.tokens.by_id.values_mut().for_each(|token| token.normalized = false);
    }
    let special = model.trainer.special();
    let [(unk_id, unk_token), ..] = &special;
    for (which, (id, text)) in [Special::Unk, Special::Bos, Special::Eos].into_iter().zip(&special)
    {
        if id.is_some() {
            draft.tokens.name(which, AddedToken::from(*text, true));
        }
    }
    let users: Vec<&str> = (0..)
        .zip(&model.pieces)
        .filter(|(_, piece)| piece.is_user_defined())
        .filter_map(|(id, _)| names.get(id))
        .map(String::as_str)
        .collect();
    let mut inner = Inner::new(match model.trainer.is_unigram() {
        true => scored(draft, model, *unk_id)?,
        false => merged(draft, model, &names, unk_token, !users.is_empty())?,
    });
    // Absent means true here, as in the code before; null means false.
    let legacy = match draft.config.get("legacy") {
        None => true,
        Some(_) => draft.switch("legacy")?.unwrap_or_default(),
    };
    let done = stages::normalize(
        &mut inner,
        model.normalizer.precompiled_charsmap(),
        normalizers(model, legacy),
    );
    draft.set(done)?;
    draft.set(stages::cut(&mut inner, words(model, legacy, users)))?;
    draft.set(stages::decode(&mut inner, decoders(model)))?;
    Ok(inner)
}

/// The pieces by id, under the names that `added_tokens_decoder` gives them. A piece isn't given a
/// name that another one keeps.
fn names(draft: &Draft<'_>, model: &Model) -> Vec<String> {
    let texts: Vec<&str> = model.pieces.iter().map(Piece::text).collect();
    if model.trainer.is_unigram() {
        return texts.into_iter().map(str::to_owned).collect();
    }
    let given: BTreeMap<usize, &str> =
        draft.tokens.by_id.iter().map(|(id, t)| (*id as usize, t.content.as_str())).collect();
    let kept: HashSet<&str> = texts
        .iter()
        .enumerate()
        .filter(|(id, _)| !given.contains_key(id))
        .map(|(_, text)| *text)
        .collect();
    let name = |(id, text): (usize, &&str)| {
        let given = given.get(&id).filter(|name| !kept.contains(*name));
        (*given.unwrap_or(text)).to_owned()
    };
    texts.iter().enumerate().map(name).collect()
}

fn scored(draft: &Draft<'_>, model: &Model, unk_id: Option<usize>) -> Result<ModelWrapper> {
    let unk_id = unk_id.ok_or_else(|| draft.error("it has no unknown token"))?;
    let pieces = model.pieces.iter().map(Piece::scored).collect();
    vocabulary::unigram(&draft.path, pieces, unk_id, model.trainer.byte_fallback())
}

/// BPE: a merge ranks as its piece scores.
fn merged(
    draft: &Draft<'_>,
    model: &Model,
    names: &[String],
    unk_token: &str,
    ignore_merges: bool,
) -> Result<ModelWrapper> {
    let normal: HashMap<&str, (f64, usize)> = names
        .iter()
        .zip(&model.pieces)
        .enumerate()
        .filter(|(_, (_, piece))| piece.is_normal())
        .map(|(id, (name, piece))| (name.as_str(), (f64::from(piece.score()), id)))
        .collect();
    let mut ranked = Vec::new();
    for (piece, (score, id)) in &normal {
        let pairs = vocabulary::splits(piece)
            .filter(|(left, right)| normal.contains_key(left) && normal.contains_key(right));
        ranked.extend(pairs.map(|(left, right)| (-score, *id, left, right)));
    }
    ranked.sort_unstable_by(|a, b| {
        a.0.total_cmp(&b.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3)))
    });
    let merges = ranked.iter().map(|(_, _, l, r)| ((*l).to_owned(), (*r).to_owned())).collect();
    let vocab: tokenizers::models::bpe::Vocab =
        (0..).zip(names).map(|(id, name)| (name.clone(), id)).collect();
    let builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unk_token.to_owned())
        .fuse_unk(true)
        .byte_fallback(model.trainer.byte_fallback())
        .ignore_merges(ignore_merges);
    vocabulary::bpe(&draft.path, builder)
}

fn normalizers(model: &Model, legacy: bool) -> Vec<Value> {
    let mut all = Vec::new();
    if model.normalizer.remove_extra_whitespaces() {
        all.push(stages::replace_regex(r"\A +| +\z", ""));
        all.push(stages::replace_regex(" {2,}", " "));
    }
    if model.normalizer.escape_whitespaces() {
        all.push(stages::replace(" ", SPACE));
    }
    if model.normalizer.add_dummy_prefix() && legacy {
        // Where a text begins with `▁` already, the stage that puts one there would not.
        all.push(stages::replace_regex(r"\A▁", "▁▁"));
    }
    all
}

fn words(model: &Model, legacy: bool, mut users: Vec<&str>) -> Vec<Value> {
    let mut all = Vec::new();
    if model.normalizer.add_dummy_prefix() {
        all.push(stages::metaspace(if legacy { "always" } else { "first" }, false));
    }
    if !users.is_empty() {
        users.sort_by_key(|piece| std::cmp::Reverse(piece.chars().count()));
        let users: Vec<String> = users.into_iter().map(regex::escape).collect();
        all.push(stages::split_regex(&users.join("|")));
    }
    all
}

fn decoders(model: &Model) -> Vec<Value> {
    let mut all = vec![stages::replace(SPACE, " ")];
    let (bytes, prefix) = (model.trainer.byte_fallback(), model.normalizer.add_dummy_prefix());
    all.extend(bytes.then(|| json!({"type": "ByteFallback"})));
    all.extend((bytes || prefix).then(|| json!({"type": "Fuse"})));
    all.extend(prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})));
    all
}
