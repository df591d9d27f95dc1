//! What comes before and behind a model, for each class. Reference: transformers 5.24
//! `models/*/tokenization_*.py`; the objects are spelled as in `tokenizer.json`.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    normalizers::{Precompiled, Sequence},
};

/// The character that stands for a space.
pub(super) const SPACE: &str = "▁";

/// Qwen's way to cut a text into words.
pub(super) const QWEN_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Llama 3's, GLM-4's and GPT-4's: up to three digits are one.
pub(super) const TIKTOKEN_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What is wrong, in words.
type Fault = String;

fn part<T: DeserializeOwned>(value: Value) -> Result<T, Fault> {
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// Sets the normalizers, one after the other, a table of characters before them.
pub(super) fn normalize(
    tokenizer: &mut Tokenizer,
    charsmap: &[u8],
    others: Vec<Value>,
) -> Result<(), Fault> {
    let mut all = Vec::new();
    if !charsmap.is_empty() {
        let table = Precompiled::from(charsmap).map_err(|e| e.to_string())?;
        all.push(NormalizerWrapper::Precompiled(table));
    }
    for other in others {
        all.push(part(other)?);
    }
    if !all.is_empty() {
        tokenizer.with_normalizer(Some(Sequence::new(all))).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Sets what cuts a text into words, one after the other.
pub(super) fn cut(tokenizer: &mut Tokenizer, all: Vec<Value>) -> Result<(), Fault> {
    let all = json!({"type": "Sequence", "pretokenizers": all});
    tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(all)?));
    Ok(())
}

/// Sets what makes text of tokens, one after the other.
pub(super) fn decode(tokenizer: &mut Tokenizer, all: Vec<Value>) -> Result<(), Fault> {
    let all = json!({"type": "Sequence", "decoders": all});
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(all)?));
    Ok(())
}

/// A normalizer or decoder that replaces a text.
pub(super) fn replace(text: &str, by: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": text}, "content": by})
}

/// A normalizer that replaces what a regular expression matches.
pub(super) fn replace_regex(regex: &str, by: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": regex}, "content": by})
}

/// Cuts out what a regular expression matches.
pub(super) fn split_regex(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// Bytes as characters that have no other meaning.
pub(super) fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets, "use_regex": use_regex})
}

/// Spaces as `▁`. `scheme` says where one is put before a text: `always`, `first` or `never`.
pub(super) fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split})
}

/// Tokens of a SentencePiece model as text, bytes among them.
pub(super) fn pieces_to_text(strip_first_space: bool) -> Vec<Value> {
    let mut all =
        vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    all.extend(
        strip_first_space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})),
    );
    all
}

/// What an encoded text or pair is put together from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot<'a> {
    /// The first text.
    A,
    /// The second one, with its type id.
    B(u8),
    /// A special token with its type id.
    Token(&'a str, u8),
}

/// Sets what special tokens stand around texts.
pub(super) fn surround(
    tokenizer: &mut Tokenizer,
    single: &[Slot<'_>],
    pair: &[Slot<'_>],
) -> Result<(), Fault> {
    let mut known = serde_json::Map::new();
    for slot in single.iter().chain(pair) {
        if let Slot::Token(token, _) = slot {
            let id = tokenizer.token_to_id(token);
            let id = id.ok_or_else(|| format!("the vocabulary has no `{token}`"))?;
            known.insert((*token).into(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
    }
    let shown = |slot: &Slot<'_>| match slot {
        Slot::A => json!({"Sequence": {"id": "A", "type_id": 0}}),
        Slot::B(kind) => json!({"Sequence": {"id": "B", "type_id": kind}}),
        Slot::Token(token, kind) => json!({"SpecialToken": {"id": token, "type_id": kind}}),
    };
    let all = |slots: &[Slot<'_>]| slots.iter().map(shown).collect::<Vec<_>>();
    let template = json!({"type": "TemplateProcessing", "single": all(single), "pair": all(pair),
        "special_tokens": known});
    tokenizer.with_post_processor(Some(part::<PostProcessorWrapper>(template)?));
    Ok(())
}

/// Sets RoBERTa's: `<s> A </s>` and `<s> A </s></s> B </s>`, with offsets that leave spaces out.
pub(super) fn surround_roberta(
    tokenizer: &mut Tokenizer,
    (cls, sep): (&str, &str),
    trim_offsets: bool,
    add_prefix_space: bool,
) -> Result<(), Fault> {
    let id = |token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| format!("the vocabulary has no `{token}`"))
    };
    let all = json!({"type": "RobertaProcessing", "sep": (sep, id(sep)?), "cls": (cls, id(cls)?),
        "trim_offsets": trim_offsets, "add_prefix_space": add_prefix_space});
    tokenizer.with_post_processor(Some(part::<PostProcessorWrapper>(all)?));
    Ok(())
}
