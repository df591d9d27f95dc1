//! A Hugging Face tokenizer folder: `tokenizer.json` or an older vocabulary, with the names of its
//! special tokens and its chat template. Reference: transformers `tokenization_utils_base.py`,
//! `from_pretrained`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Encoding, Tokenizer as Inner};

use crate::error::{DataError, Result, RowProblem};

mod charsmap;
mod class_defaults;
mod files;
mod older;

/// The special tokens that have a name in `tokenizer_config.json`, in transformers' order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `bos_token`, begins a text.
    Bos,
    /// `eos_token`, ends a text or an answer.
    Eos,
    /// `unk_token`.
    Unk,
    /// `sep_token`.
    Sep,
    /// `pad_token`.
    Pad,
    /// `cls_token`.
    Cls,
    /// `mask_token`.
    Mask,
}

impl Special {
    pub(crate) const ALL: [Self; 7] =
        [Self::Bos, Self::Eos, Self::Unk, Self::Sep, Self::Pad, Self::Cls, Self::Mask];

    /// The key in `tokenizer_config.json`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Bos => "bos_token",
            Self::Eos => "eos_token",
            Self::Pad => "pad_token",
            Self::Unk => "unk_token",
            Self::Cls => "cls_token",
            Self::Sep => "sep_token",
            Self::Mask => "mask_token",
        }
    }
}

/// A chat template under its name; a model with a single one calls it `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedTemplate {
    pub(crate) name: String,
    pub(crate) source: String,
}

/// A tokenizer with its special tokens, chat templates and stop tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    folder: PathBuf,
    special: [Option<String>; 7],
    add_bos_token: bool,
    model_max_length: Option<usize>,
    chat_templates: Vec<NamedTemplate>,
    extra_stop_ids: Vec<u32>,
    special_ids: BTreeSet<u32>,
    config: Map<String, Value>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, the chat
    /// template and the `eos_token_id` of `generation_config.json` of a model folder. Without a
    /// `tokenizer.json` the tokenizer is made from `vocab.txt`, `vocab.json` and `merges.txt`, or a
    /// SentencePiece model, as transformers makes it.
    /// # Errors
    /// A missing vocabulary, or a file that can't be parsed; the message names the file.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        files::open(folder.as_ref())
    }

    /// Whether a folder has a tokenizer.
    #[must_use]
    pub fn is_in(folder: impl AsRef<Path>) -> bool {
        files::are_in(folder.as_ref())
    }

    /// The folder it was read from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Token ids of a text, without the special tokens that a post-processor would add. The text
    /// of a special token becomes that token, unless `split_special_tokens` was switched on.
    /// # Errors
    /// A text that the tokenizer's model can't represent.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, RowProblem> {
        Ok(self.encoding(text, None, false)?.get_ids().to_vec())
    }

    /// A full encoding of one text or a pair, with or without the post-processor's special tokens
    /// (`[CLS]`, `</s>`); offsets count bytes.
    /// # Errors
    /// A text that the tokenizer's model can't represent.
    pub fn encoding(
        &self,
        text: &str,
        pair: Option<&str>,
        add_special_tokens: bool,
    ) -> Result<Encoding, RowProblem> {
        match pair {
            Some(pair) => self.inner.encode((text, pair), add_special_tokens),
            None => self.inner.encode(text, add_special_tokens),
        }
        .map_err(|e| RowProblem::Tokenize { message: e.to_string() })
    }

    /// The encoding of words that are already separated, with special tokens; `word_ids` tell which
    /// word each token belongs to.
    /// # Errors
    /// A word that the tokenizer's model can't represent.
    pub fn encode_words(&self, words: &[String]) -> Result<Encoding, RowProblem> {
        self.inner.encode(words, true).map_err(|e| RowProblem::Tokenize { message: e.to_string() })
    }

    /// Whether texts are cut from their beginning (`truncation_side: left`).
    #[must_use]
    pub fn truncates_left(&self) -> bool {
        self.config.get("truncation_side").and_then(Value::as_str) == Some("left")
    }

    /// Whether the model tells the two texts of a pair apart by `token_type_ids`.
    #[must_use]
    pub fn uses_type_ids(&self) -> bool {
        match self.config.get("model_input_names") {
            Some(Value::Array(names)) => names.iter().any(|n| n.as_str() == Some("token_type_ids")),
            _ => class_defaults::uses_type_ids(self.class()),
        }
    }

    fn class(&self) -> &str {
        self.config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text of token ids; special tokens are left out on request.
    /// # Errors
    /// A decoder that fails on the ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| self.error(e))
    }

    /// Id of a token by its exact text.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The raw text of a token, e.g. `Ġthe`.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the id is a token marked as special.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Number of ids, added tokens included. More than the model's embedding has rows means that
    /// the embedding must be resized.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The text of a named special token.
    #[must_use]
    pub fn special(&self, which: Special) -> Option<&str> {
        self.special.get(which as usize).and_then(Option::as_deref)
    }

    /// The id of a named special token.
    #[must_use]
    pub fn special_id(&self, which: Special) -> Option<u32> {
        self.special(which).and_then(|t| self.token_id(t))
    }

    /// Id of `eos_token`.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id(Special::Eos)
    }

    /// Id of `bos_token`.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id(Special::Bos)
    }

    /// Id of `pad_token`.
    #[must_use]
    pub fn pad_id(&self) -> Option<u32> {
        self.special_id(Special::Pad)
    }

    /// Whether pretraining texts begin with `bos_token`.
    #[must_use]
    pub fn add_bos_token(&self) -> bool {
        self.add_bos_token
    }

    /// `model_max_length`, where the folder states a real one.
    #[must_use]
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// The model's chat template; of several the one called `tool_use` for conversations with
    /// tools, else `default`, as transformers picks it.
    #[must_use]
    pub fn chat_template(&self, tools: bool) -> Option<&str> {
        let named = |name| self.chat_templates.iter().find(|t| t.name == name);
        let found = tools.then(|| named("tool_use")).flatten().or_else(|| named("default"));
        found.map(|t| t.source.as_str())
    }

    /// Ids at which generation stops: `eos_token`, those of `generation_config.json`, and the
    /// stop words that a template added.
    #[must_use]
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.eos_id().into_iter().collect();
        ids.extend(&self.extra_stop_ids);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Encodes the text of special tokens as plain text from now on.
    pub fn set_split_special_tokens(&mut self, split: bool) {
        self.inner.set_encode_special_tokens(split);
    }

    /// Names a special token, adding it to the vocabulary if it isn't there.
    /// # Errors
    /// A vocabulary that can't take the token.
    pub fn set_special(&mut self, which: Special, token: &str) -> Result<bool> {
        let added = self.add_special_token(token)?;
        if let Some(slot) = self.special.get_mut(which as usize) {
            *slot = Some(token.to_owned());
        }
        self.config.insert(which.key().to_owned(), Value::from(token));
        Ok(added)
    }

    /// Makes `token` a special token; true if the vocabulary grew.
    /// # Errors
    /// A vocabulary that can't take the token.
    pub fn add_special_token(&mut self, token: &str) -> Result<bool> {
        let before = self.vocab_size();
        self.inner
            .add_special_tokens([AddedToken::from(token.to_owned(), true)])
            .map_err(|e| self.error(e))?;
        self.special_ids.extend(self.token_id(token));
        Ok(self.vocab_size() > before)
    }

    /// Makes generation stop at `token` too.
    pub fn add_stop_token(&mut self, token: &str) {
        self.extra_stop_ids.extend(self.token_id(token));
    }

    /// Writes the tokenizer into a folder as transformers reads it: `tokenizer.json`,
    /// `tokenizer_config.json` and the chat template.
    /// # Errors
    /// A file that can't be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        files::save(self, folder.as_ref())
    }

    pub(crate) fn error(&self, message: impl std::fmt::Display) -> DataError {
        DataError::Tokenizer { folder: self.folder.clone(), message: message.to_string() }
    }
}
