//! Tokens beside the vocabulary: those with a name, and those that were added.
//! Reference: transformers 5.24 `tokenization_utils_base.py`, `_from_pretrained`, and
//! `tokenization_utils_tokenizers.py`, `TokenizersBackend.__init__`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{
    error::{DataError, Result, describe},
    tokenizer::{Special, class_defaults, files::object},
};

/// What the files of a folder say about tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// `added_tokens_decoder`, or `added_tokens.json`: by id.
    pub(super) by_id: BTreeMap<u32, AddedToken>,
    /// In the order of [`Special::ALL`].
    named: [Named; 7],
    /// Further `*_token` keys, which some models have.
    own: Vec<AddedToken>,
    /// `extra_special_tokens`, in `tokenizer_config.json` also `additional_special_tokens`. What
    /// is said there replaces what a class has.
    extra: Option<Vec<AddedToken>>,
    /// `additional_special_tokens` of `special_tokens_map.json`.
    additional: Vec<AddedToken>,
}

#[derive(Clone, Debug, Default)]
enum Named {
    /// Nothing is said: the class decides.
    #[default]
    Unsaid,
    /// `null`: there is no such token.
    Denied,
    Said(AddedToken),
}

impl Tokens {
    /// Reads `tokenizer_config.json`, already parsed, and where that has no list of added tokens,
    /// `special_tokens_map.json` and `added_tokens.json`.
    pub(super) fn read(
        folder: &Path,
        config: &Map<String, Value>,
        map: &Map<String, Value>,
    ) -> Result<Self> {
        let mut tokens = Self::default();
        let fields = Fields { path: &folder.join("tokenizer_config.json"), map: config };
        if let Some(decoder) = config.get("added_tokens_decoder") {
            let all = decoder.as_object().ok_or_else(|| fields.wrong("added_tokens_decoder"))?;
            for (id, value) in all {
                let id = id.parse().map_err(|_| fields.wrong("added_tokens_decoder"))?;
                tokens.by_id.insert(id, fields.token("added_tokens_decoder", value, false)?);
            }
        }
        tokens.say(&fields)?;
        if tokens.extra.as_ref().is_none_or(Vec::is_empty) {
            tokens.extra = fields.additional()?.or(tokens.extra);
        }
        if !config.contains_key("added_tokens_decoder") {
            let fields = Fields { path: &folder.join("special_tokens_map.json"), map };
            tokens.say(&fields)?;
            tokens.additional = fields.additional()?.unwrap_or_default();
            tokens.read_added(&folder.join("added_tokens.json"))?;
        }
        tokens.lend_flags();
        Ok(tokens)
    }

    /// Takes the named tokens and the extra ones of a file.
    fn say(&mut self, fields: &Fields<'_>) -> Result<()> {
        for (which, slot) in Special::ALL.into_iter().zip(&mut self.named) {
            match fields.map.get(which.key()) {
                None => {}
                Some(Value::Null) => *slot = Named::Denied,
                Some(value) => *slot = Named::Said(fields.token(which.key(), value, true)?),
            }
        }
        match fields.map.get("extra_special_tokens") {
            None | Some(Value::Null) => {}
            Some(Value::Object(own)) => {
                for value in own.values() {
                    self.own.push(fields.token("extra_special_tokens", value, true)?);
                }
            }
            Some(list) => {
                let list = fields.list("extra_special_tokens", list)?;
                self.extra.get_or_insert_default().extend(list);
            }
        }
        let is_own = |key: &str| {
            key.ends_with("_token") && Special::ALL.iter().all(|which| which.key() != key)
        };
        for (_, value) in fields.map.iter().filter(|(key, _)| is_own(key)) {
            if let Value::String(text) = value {
                self.own.push(AddedToken::from(text.clone(), true));
            }
        }
        Ok(())
    }

    /// `added_tokens.json`: text to id.
    fn read_added(&mut self, path: &Path) -> Result<()> {
        for (text, id) in object(path)?.unwrap_or_default() {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| {
                let found = describe(&id);
                DataError::file(path, format!("`{text}` is {found}; it must be an id"))
            })?;
            let named = self.named.iter().any(|n| matches!(n, Named::Said(t) if t.content == text));
            let special = named || self.extra.iter().flatten().any(|t| t.content == text);
            self.by_id.insert(number, AddedToken::from(text, special));
        }
        Ok(())
    }

    /// A named token that is among the added ones has their flags.
    fn lend_flags(&mut self) {
        for named in &mut self.named {
            let Named::Said(token) = named else { continue };
            if let Some(added) = self.by_id.values().find(|added| added.content == token.content) {
                *token = added.clone();
            }
        }
    }

    /// Names what the files don't name.
    pub(super) fn name(&mut self, which: Special, token: AddedToken) {
        if let Some(slot @ Named::Unsaid) = self.named.get_mut(which as usize) {
            *slot = Named::Said(token);
        }
    }

    /// Names what the files don't name as class `class` does.
    pub(super) fn assume(&mut self, class: &str) {
        for which in Special::ALL {
            if let Some(token) = class_defaults::special(class, which) {
                self.name(which, AddedToken::from(token, true));
            }
        }
    }

    /// `extra_special_tokens`.
    pub(super) fn extra(&self) -> &[AddedToken] {
        self.extra.as_deref().unwrap_or_default()
    }

    /// Adds tokens that a class has under names of its own.
    pub(super) fn own(&mut self, tokens: &[&str]) {
        self.own.extend(tokens.iter().map(|token| AddedToken::from(*token, true)));
    }

    /// Gives a named token other flags.
    pub(super) fn flag(&mut self, which: Special, flags: fn(AddedToken) -> AddedToken) {
        if let Some(Named::Said(token)) = self.named.get_mut(which as usize) {
            *token = flags(token.clone());
        }
    }

    /// The text of a named token.
    pub(super) fn named(&self, which: Special) -> Option<&str> {
        match self.named.get(which as usize) {
            Some(Named::Said(token)) => Some(&token.content),
            _ => None,
        }
    }

    fn with_names(&self) -> impl Iterator<Item = &AddedToken> {
        let named = self.named.iter().filter_map(|named| match named {
            Named::Said(token) => Some(token),
            _ => None,
        });
        named.chain(&self.own)
    }

    /// The named tokens and the extra ones; `additional` are the class's, which a folder's replace.
    pub(super) fn special<'a>(
        &'a self,
        additional: &'a Vec<AddedToken>,
    ) -> impl Iterator<Item = &'a AddedToken> {
        self.with_names().chain(self.extra.as_ref().unwrap_or(additional))
    }

    /// All tokens in the order in which transformers adds them, which decides the ids of those
    /// that the vocabulary lacks.
    pub(super) fn in_order(&self, additional: &Vec<AddedToken>) -> Vec<AddedToken> {
        let mut all: Vec<AddedToken> = self.by_id.values().cloned().collect();
        let added = all.clone();
        for token in self.special(additional) {
            if added.iter().all(|a| a.content != token.content) && !all.contains(token) {
                all.push(token.clone());
            }
        }
        for token in &mut all {
            token.special |= self.with_names().any(|named| named.content == token.content);
        }
        all
    }

    /// `additional_special_tokens` as `special_tokens_map.json` has them.
    pub(super) fn additional(&self) -> &[AddedToken] {
        &self.additional
    }
}

/// The fields of a file, with its name for errors.
struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn additional(&self) -> Result<Option<Vec<AddedToken>>> {
        const KEY: &str = "additional_special_tokens";
        let list = self.map.get(KEY).filter(|value| !value.is_null());
        list.map(|value| self.list(KEY, value)).transpose()
    }

    fn wrong(&self, key: &str) -> DataError {
        let found = self.map.get(key).map_or("missing".to_owned(), describe);
        DataError::file(self.path, format!("`{key}` is {found}, not a token or tokens"))
    }

    fn list(&self, key: &str, value: &Value) -> Result<Vec<AddedToken>> {
        let Value::Array(list) = value else { return Err(self.wrong(key)) };
        list.iter().map(|value| self.token(key, value, true)).collect()
    }

    /// A token, spelled as a text or as an object with its flags.
    fn token(&self, key: &str, value: &Value, special: bool) -> Result<AddedToken> {
        let fields = match value {
            Value::String(text) => return Ok(AddedToken::from(text.clone(), special)),
            Value::Object(fields) => fields,
            _ => return Err(self.wrong(key)),
        };
        let text = fields.get("content").and_then(Value::as_str).ok_or_else(|| self.wrong(key))?;
        let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(special);
        Ok(AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or_default())
            .lstrip(flag("lstrip").unwrap_or_default())
            .rstrip(flag("rstrip").unwrap_or_default())
            .normalized(flag("normalized").unwrap_or(!special)))
    }
}
