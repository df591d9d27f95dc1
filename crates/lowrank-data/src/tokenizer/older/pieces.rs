//! The classes whose vocabulary is a SentencePiece model.

use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{
    Class, Draft, backend,
    sentencepiece::{Model, Piece},
    stages::{self, SPACE},
    vocabulary,
};
use crate::{
    error::{DataError, Result, describe},
    tokenizer::Special,
};

/// The languages of mBART, which have a token each.
const LANGUAGES: [&str; 25] = [
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
];

/// The tokens that a model has besides pieces of text.
fn control_tokens(model: &Model) -> Vec<AddedToken> {
    let pieces = model.pieces.iter().filter(|p| p.is_control() || p.is_user_defined());
    pieces.map(|p| AddedToken::from(p.text(), p.is_control()).normalized(false)).collect()
}

impl Draft<'_> {
    /// The tokenizer, and the tokens that are added to it.
    pub(super) fn sentence_pieces(&mut self, model: &Model) -> Result<(Inner, Vec<AddedToken>)> {
        let mut additional = control_tokens(model);
        let inner = match self.class {
            Class::Llama | Class::CodeLlama | Class::Gemma => self.merged_pieces(model)?,
            Class::Backend | Class::ChatGlm => {
                // Pieces that a user wanted whole are cut out before the model sees the text.
                additional.retain(|token| token.special);
                backend::build(self, model)?
            }
            Class::DebertaV2 => self.deberta_v2(model)?,
            _ => self.unigram(model, &mut additional)?,
        };
        Ok((inner, additional))
    }

    /// Llama, Code Llama, Gemma: BPE over pieces, with bytes for what has no piece.
    fn merged_pieces(&mut self, model: &Model) -> Result<Inner> {
        let unk_token = match self.class {
            Class::Llama => None,
            _ => self.named(Special::Unk).map(str::to_owned),
        };
        let bpe = vocabulary::merged_pieces(&self.path, model, |builder| {
            let builder = builder.fuse_unk(true).byte_fallback(true);
            match unk_token {
                Some(token) => builder.unk_token(token),
                None => builder,
            }
        })?;
        let mut inner = Inner::new(bpe);
        let prefix = self.switch("add_prefix_space")?.unwrap_or(true);
        let legacy = self.switch("legacy")?.unwrap_or_default();
        let first = if legacy && self.class == Class::Llama { "always" } else { "first" };
        let (normal, cut, strip) = match self.class {
            Class::Gemma => {
                let at_spaces = json!({"type": "Split", "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious", "invert": false});
                (vec![stages::replace(" ", SPACE)], at_spaces, false)
            }
            class => {
                let scheme = if prefix { first } else { "never" };
                (Vec::new(), stages::metaspace(scheme, false), prefix || class != Class::Llama)
            }
        };
        self.set(stages::normalize(&mut inner, &[], normal))?;
        self.set(stages::cut(&mut inner, vec![cut]))?;
        self.set(stages::decode(&mut inner, stages::pieces_to_text(strip)))?;
        if self.class == Class::CodeLlama {
            self.tokens.own(&["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>", "<FILL_ME>"]);
        }
        Ok(inner)
    }

    /// T5, XLM-RoBERTa and mBART: a unigram model over words that begin with a space.
    fn unigram(&mut self, model: &Model, additional: &mut Vec<AddedToken>) -> Result<Inner> {
        let pieces = self.scored(model, additional)?;
        let unk_id = if self.class == Class::T5 { 2 } else { 3 };
        let mut inner = Inner::new(vocabulary::unigram(&self.path, pieces, unk_id, false)?);
        let prefix =
            self.class != Class::XlmRoberta || self.switch("add_prefix_space")?.unwrap_or(true);
        let charsmap =
            if self.class == Class::MBart { &[] } else { model.normalizer.precompiled_charsmap() };
        let words = stages::metaspace(if prefix { "always" } else { "never" }, true);
        self.set(stages::normalize(&mut inner, charsmap, Vec::new()))?;
        self.set(stages::cut(&mut inner, vec![json!({"type": "WhitespaceSplit"}), words.clone()]))?;
        self.set(stages::decode(&mut inner, vec![words]))?;
        Ok(inner)
    }

    /// The pieces with their scores, in the order of the model's ids: fairseq's models have four
    /// special tokens where SentencePiece has three, and further ones behind.
    fn scored(
        &mut self,
        model: &Model,
        additional: &mut Vec<AddedToken>,
    ) -> Result<Vec<(String, f64)>> {
        let own = model.pieces.iter().map(Piece::scored);
        let unscored = |token: &str| (token.to_owned(), 0.0);
        if self.class == Class::T5 {
            let count = self.extra_ids()?;
            let name = |i| format!("<extra_id_{i}>");
            if !additional.iter().any(|token| token.content.contains("<extra_id_")) {
                additional.extend((0..count).map(|i| AddedToken::from(name(i), true)));
            }
            return Ok(own.chain((0..count).rev().map(|i| (name(i), 0.0))).collect());
        }
        let first = [Special::Bos, Special::Pad, Special::Eos, Special::Unk];
        let mut pieces = Vec::with_capacity(model.pieces.len() + 32);
        for which in first {
            pieces.push(unscored(self.need(which)?));
        }
        pieces.extend(own.skip(3));
        if self.class == Class::MBart {
            pieces.extend(LANGUAGES.map(unscored));
            let others = std::mem::take(additional);
            let languages = LANGUAGES.map(|language| AddedToken::from(language, true));
            *additional = languages.into_iter().chain(others).collect();
        }
        pieces.push(unscored(self.need(Special::Mask)?));
        Ok(pieces)
    }

    /// How many `<extra_id_N>` there are.
    fn extra_ids(&self) -> Result<u32> {
        let Some(value) = self.config.get("extra_ids") else { return Ok(100) };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1 << 16);
        count.ok_or_else(|| {
            let path = self.folder.join("tokenizer_config.json");
            let found = describe(value);
            DataError::file(&path, format!("`extra_ids` is {found}; it must be a small number"))
        })
    }

    /// DeBERTa's later versions: a unigram model that keeps spaces.
    fn deberta_v2(&self, model: &Model) -> Result<Inner> {
        let pieces: Vec<(String, f64)> = model.pieces.iter().map(Piece::scored).collect();
        let unk_token = self.need(Special::Unk)?;
        let unk_id = pieces.iter().position(|(text, score)| text == unk_token && *score == 0.0);
        let [(own, _), ..] = model.trainer.special();
        let unk_id = unk_id.or(own).unwrap_or(1);
        let mut inner = Inner::new(vocabulary::unigram(&self.path, pieces, unk_id, false)?);
        let on = |key, default: bool| Ok::<_, DataError>(self.switch(key)?.unwrap_or(default));
        let mut normal = Vec::new();
        normal.extend(on("do_lower_case", false)?.then(|| json!({"type": "Lowercase"})));
        normal.push(stages::replace_regex(r"\s{2,}|[\n\r\t]", " "));
        normal.push(json!({"type": "NFC"}));
        normal.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
        let isolated = || json!({"type": "Punctuation", "behavior": "Isolated"});
        let mut cut: Vec<Value> = on("split_by_punct", false)?.then(isolated).into_iter().collect();
        let scheme = if on("add_prefix_space", true)? { "always" } else { "first" };
        cut.push(stages::metaspace(scheme, true));
        self.set(stages::normalize(&mut inner, &[], normal))?;
        self.set(stages::cut(&mut inner, cut))?;
        self.set(stages::decode(&mut inner, vec![stages::metaspace(scheme, true)]))?;
        Ok(inner)
    }
}
