//! Tokenizers of folders without `tokenizer.json`, from the files that older folders have, with
//! the ids that transformers 5.24 gives.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{Special, files::object};
use crate::error::{DataError, Result, describe};

mod added;
mod backend;
mod class;
mod pieces;
mod sentencepiece;
mod stages;
mod tiktoken;
mod vocabulary;

use added::Tokens;
use class::Class;
use sentencepiece::Model;
use stages::Slot;
use tiktoken::Ranked;

/// The files that hold a vocabulary.
pub(super) const VOCABULARIES: [&str; 7] = [
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
    "tiktoken.model",
];

/// The tokens that ChatGLM's code puts behind its vocabulary.
const CHATGLM: [&str; 9] = [
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
];

/// A tokenizer and what its class assumes.
pub(super) struct Older {
    pub(super) inner: Inner,
    pub(super) special: [Option<String>; 7],
    pub(super) class: &'static str,
    pub(super) add_bos_token: bool,
}

/// Builds the tokenizer of a folder; `None` if the folder has no vocabulary.
pub(super) fn open(
    folder: &Path,
    config: &Map<String, Value>,
    map: &Map<String, Value>,
) -> Result<Option<Older>> {
    if !VOCABULARIES.iter().any(|file| folder.join(file).is_file()) {
        return Ok(None);
    }
    let class = class_of(folder, config)?;
    let tokens = Tokens::read(folder, config, map)?;
    let path = vocabulary(folder, class)?;
    let ranked = match class {
        Class::Backend | Class::ChatGlm | Class::ChatGlm4 | Class::Llama | Class::Gemma => {
            Ranked::read(&path)?
        }
        _ => None,
    };
    // Some folders call both of ChatGLM's classes by the older name.
    let class = match (class, &ranked) {
        (Class::ChatGlm, Some(_)) => Class::ChatGlm4,
        (Class::ChatGlm4, None) => Class::ChatGlm,
        (class, _) => class,
    };
    Draft { folder, path, config, class, tokens }.build(ranked).map(Some)
}

/// The class that the folder's files name or mean.
fn class_of(folder: &Path, config: &Map<String, Value>) -> Result<Class> {
    let model = object(&folder.join("config.json"))?.unwrap_or_default();
    let word =
        |map: &Map<String, Value>, key| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let model_type = word(&model, "model_type").unwrap_or_default();
    let stated = word(config, "tokenizer_class").or_else(|| word(&model, "tokenizer_class"));
    if stated.is_none() && model_type.is_empty() {
        let message = "there is neither a `tokenizer.json` nor a `tokenizer_class` or \
            `model_type` that says what its vocabulary is for";
        return Err(DataError::Tokenizer { folder: folder.to_owned(), message: message.into() });
    }
    let class = Class::of(stated.as_deref(), &model_type);
    match stated.filter(|stated| class == Class::Backend && !Class::is_known(stated)) {
        Some(stated) if config.contains_key("auto_map") => {
            let message = format!(
                "its tokenizer, `{stated}`, is code of the model's own, which isn't run; a \
                 `tokenizer.json` is needed"
            );
            Err(DataError::Tokenizer { folder: folder.to_owned(), message })
        }
        _ => Ok(class),
    }
}

/// The file that a class reads. SentencePiece models of any class are also called
/// `tokenizer.model`.
fn vocabulary(folder: &Path, class: Class) -> Result<PathBuf> {
    let names = match class.file() {
        _ if class == Class::Backend => vec!["tokenizer.model", "tiktoken.model"],
        own if own.ends_with(".model") => vec!["tokenizer.model", own],
        own => vec![own],
    };
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let there = VOCABULARIES.iter().copied().filter(|file| folder.join(file).is_file());
        let message = format!(
            "`{}` is made from {}, which isn't there; there is {}",
            class.name(),
            crate::error::list(names),
            crate::error::list(there)
        );
        DataError::Tokenizer { folder: folder.to_owned(), message }
    })
}

/// A tokenizer that is being built.
struct Draft<'a> {
    folder: &'a Path,
    /// The vocabulary.
    path: PathBuf,
    config: &'a Map<String, Value>,
    class: Class,
    tokens: Tokens,
}

impl Draft<'_> {
    fn build(mut self, ranked: Option<Ranked>) -> Result<Older> {
        self.tokens.assume(self.class.name());
        if self.class == Class::MBart {
            self.tokens.flag(Special::Mask, |token| token.lstrip(true));
        }
        let additional = self.tokens.additional().to_vec();
        let (mut inner, additional) = match self.class {
            _ if let Some(ranked) = ranked => (self.ranked(&ranked)?, additional),
            Class::Bert => (self.bert()?, additional),
            Class::Gpt2 | Class::Roberta | Class::Deberta | Class::GptNeoX | Class::Qwen2 => {
                (self.byte_level()?, additional)
            }
            _ => self.sentence_pieces(&Model::read(&self.path)?)?,
        };
        if self.class == Class::ChatGlm {
            let first = CHATGLM.map(|token| AddedToken::from(token, true));
            inner.add_tokens(first).map_err(|e| self.error(e))?;
        }
        let mut tokens = self.tokens.in_order(&additional);
        if self.class == Class::Qwen2 {
            // Once more, whatever flags they had.
            let special = self.tokens.special(&additional);
            tokens.extend(special.map(|token| AddedToken::from(token.content.as_str(), true)));
        }
        inner.add_tokens(tokens).map_err(|e| self.error(e))?;
        let add_bos_token = self.surround(&mut inner)?;
        Ok(Older {
            inner,
            special: Special::ALL.map(|which| self.named(which).map(str::to_owned)),
            class: self.class.name(),
            add_bos_token,
        })
    }

    fn error(&self, message: impl std::fmt::Display) -> DataError {
        DataError::file(&self.path, message)
    }

    /// A fault of a stage as an error about the vocabulary.
    fn set(&self, done: std::result::Result<(), String>) -> Result<()> {
        done.map_err(|fault| self.error(fault))
    }

    fn named(&self, which: Special) -> Option<&str> {
        self.tokens.named(which)
    }

    fn need(&self, which: Special) -> Result<&str> {
        self.named(which).ok_or_else(|| self.error(format!("there is no `{}`", which.key())))
    }

    /// A switch of `tokenizer_config.json`; `null` is false where transformers takes it so.
    fn switch(&self, key: &str) -> Result<Option<bool>> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(other) => {
                let path = self.folder.join("tokenizer_config.json");
                let found = describe(other);
                Err(DataError::file(&path, format!("`{key}` is {found}; it must be true or false")))
            }
        }
    }

    /// WordPiece, as Google's first code for BERT cuts and cleans.
    fn bert(&self) -> Result<Inner> {
        let unk_token = self.named(Special::Unk).unwrap_or("[UNK]");
        let mut inner = Inner::new(vocabulary::word_piece(&self.path, unk_token)?);
        let clean = json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": self.switch("tokenize_chinese_chars")?.unwrap_or(true),
            "strip_accents": self.switch("strip_accents")?,
            "lowercase": self.switch("do_lower_case")?.unwrap_or(true),
        });
        self.set(stages::normalize(&mut inner, &[], vec![clean]))?;
        self.set(stages::cut(&mut inner, vec![json!({"type": "BertPreTokenizer"})]))?;
        let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        self.set(stages::decode(&mut inner, vec![decoder]))?;
        Ok(inner)
    }

    /// BPE over bytes, which are written as characters.
    fn byte_level(&self) -> Result<Inner> {
        let mut inner = Inner::new(vocabulary::byte_pairs(self.folder)?);
        let prefix = self.switch("add_prefix_space")?.unwrap_or_default();
        let trim = match self.class {
            Class::GptNeoX => self.switch("trim_offsets")?.unwrap_or(true),
            _ => true,
        };
        let cut = match self.class {
            Class::Qwen2 => {
                vec![
                    stages::split_regex(stages::QWEN_WORDS),
                    stages::byte_level(prefix, true, false),
                ]
            }
            _ => vec![stages::byte_level(prefix, trim, true)],
        };
        if matches!(self.class, Class::Qwen2 | Class::GptNeoX) {
            self.set(stages::normalize(&mut inner, &[], vec![json!({"type": "NFC"})]))?;
        }
        self.set(stages::cut(&mut inner, cut))?;
        self.set(stages::decode(&mut inner, vec![stages::byte_level(true, true, true)]))?;
        Ok(inner)
    }

    /// Sets the special tokens around texts; whether `bos_token` is one of them.
    fn surround(&self, inner: &mut Inner) -> Result<bool> {
        let token = |which, kind| Ok::<_, DataError>(Slot::Token(self.need(which)?, kind));
        let (single, pair) = match self.class {
            Class::Bert | Class::DebertaV2 => {
                let (cls, sep) = (token(Special::Cls, 0)?, token(Special::Sep, 0)?);
                let pair = vec![cls, Slot::A, sep, Slot::B(1), token(Special::Sep, 1)?];
                (vec![cls, Slot::A, sep], pair)
            }
            Class::Roberta => {
                let ends = (self.need(Special::Cls)?, self.need(Special::Sep)?);
                let trim = self.switch("trim_offsets")?.unwrap_or(true);
                let prefix = self.switch("add_prefix_space")?.unwrap_or_default();
                self.set(stages::surround_roberta(inner, ends, trim, prefix))?;
                return Ok(false);
            }
            Class::Deberta | Class::XlmRoberta => {
                let (cls, sep) = match self.class {
                    Class::Deberta => (Special::Cls, Special::Sep),
                    _ => (Special::Bos, Special::Eos),
                };
                let (cls, sep) = (token(cls, 0)?, token(sep, 0)?);
                (vec![cls, Slot::A, sep], vec![cls, Slot::A, sep, sep, Slot::B(0), sep])
            }
            Class::T5 => {
                let eos = token(Special::Eos, 0)?;
                (vec![Slot::A, eos], vec![Slot::A, eos, Slot::B(0), eos])
            }
            Class::MBart => {
                let language = self.config.get("src_lang").and_then(Value::as_str);
                let end = [token(Special::Eos, 0)?, Slot::Token(language.unwrap_or("en_XX"), 0)];
                ([&[Slot::A], &end[..]].concat(), [&[Slot::A, Slot::B(0)], &end[..]].concat())
            }
            Class::ChatGlm | Class::ChatGlm4 => {
                let start = if self.class == Class::ChatGlm { "sop" } else { "<sop>" };
                let single = vec![Slot::Token("[gMASK]", 0), Slot::Token(start, 0), Slot::A];
                let pair = [&single[..], &[Slot::B(0), token(Special::Eos, 0)?]].concat();
                (single, pair)
            }
            _ => return self.surround_as_asked(inner),
        };
        self.set(stages::surround(inner, &single, &pair))?;
        Ok(false)
    }

    /// `bos_token` and `eos_token` around texts where `tokenizer_config.json` asks for them.
    fn surround_as_asked(&self, inner: &mut Inner) -> Result<bool> {
        let code = self.class == Class::CodeLlama;
        let bos = self.switch("add_bos_token")?.unwrap_or(code);
        let eos = self.switch("add_eos_token")?.unwrap_or_default();
        let bos = self.named(Special::Bos).filter(|_| bos);
        let eos = self.named(Special::Eos).filter(|_| eos);
        let around = |text, kind| {
            let token = |token| Slot::Token(token, kind);
            bos.map(token).into_iter().chain([text]).chain(eos.map(token))
        };
        let single: Vec<Slot<'_>> = around(Slot::A, 0).collect();
        let pair: Vec<Slot<'_>> = around(Slot::A, 0).chain(around(Slot::B(1), 1)).collect();
        self.set(stages::surround(inner, &single, &pair))?;
        Ok(bos.is_some())
    }
}
