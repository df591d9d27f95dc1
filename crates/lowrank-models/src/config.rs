//! `config.json`, read field by field so that an error can name the field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The largest size that a field may name: beyond any model, and far from overflow.
const LARGEST: u64 = 1 << 28;

/// A JSON object of a known file.
#[derive(Clone, Debug)]
pub struct Config {
    file: String,
    /// Dotted place of this object in the file, with a dot at the end.
    at: String,
    fields: Map<String, Value>,
    /// Fields and the names under which they are read where they are absent.
    aliases: &'static [(&'static str, &'static str)],
    /// Fields and the names that they have in the file.
    renamed: Vec<(&'static str, &'static str)>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read or isn't a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::parse(path.display().to_string(), &text)
    }

    /// Parses the text of a file of that name.
    ///
    /// # Errors
    /// When it isn't a JSON object.
    pub fn parse(file: String, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(fields) => {
                Ok(Self { file, at: String::new(), fields, aliases: &[], renamed: Vec::new() })
            }
            Err(source) => Err(Error::Json { file, source }),
        }
    }

    /// The file's name, for errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The same fields, of which some have a second name: of each pair the second is read where
    /// the first is absent.
    pub fn with_aliases(&self, aliases: &'static [(&'static str, &'static str)]) -> Self {
        Self { aliases, ..self.clone() }
    }

    /// The name under which a field is read.
    fn key_of<'a>(&self, key: &'a str) -> &'a str {
        let is_present = |key: &str| self.fields.get(key).is_some_and(|v| !v.is_null());
        let alias = self.aliases.iter().find(|(name, _)| *name == key);
        alias.filter(|_| !is_present(key)).map_or(key, |(_, alias)| alias)
    }

    /// The name under which the file has a field, or is expected to have it.
    pub fn name_of<'a>(&self, key: &'a str) -> &'a str {
        let key = self.key_of(key);
        self.renamed.iter().find(|(own, _)| *own == key).map_or(key, |(_, name)| name)
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// A field's value; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(self.key_of(key)).filter(|v| !v.is_null())
    }

    /// An error about a field.
    pub fn wrong(&self, key: &str, must_be: impl Into<String>) -> Error {
        let found = self.get(key).map_or("missing".to_owned(), shorten);
        Error::Field {
            file: self.file.clone(),
            field: format!("{}{}", self.at, self.name_of(key)),
            found,
            must_be: must_be.into(),
        }
    }

    /// An error about a field whose value asks for something that isn't implemented.
    pub fn not_implemented(&self, key: &str, known: &str) -> Error {
        Error::NotImplemented {
            file: self.file.clone(),
            field: format!("{}{}", self.at, self.name_of(key)),
            found: self.get(key).map_or("missing".to_owned(), shorten),
            known: known.to_owned(),
        }
    }

    fn missing(&self, key: &str) -> Error {
        Error::FieldMissing {
            file: self.file.clone(),
            field: format!("{}{}", self.at, self.name_of(key)),
        }
    }

    /// A size: a whole number from 1 on.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    /// A size that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        let must_be = || self.wrong(key, format!("a whole number from 1 to {LARGEST}"));
        let read = |v: &Value| match v.as_u64() {
            Some(n @ 1..=LARGEST) => usize::try_from(n).map_err(|_| must_be()),
            _ => Err(must_be()),
        };
        self.get(key).map(read).transpose()
    }

    /// A whole number from 0 on, that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn count_or_none(&self, key: &str) -> Result<Option<usize>> {
        let count = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let read = |v| count(v).ok_or_else(|| self.wrong(key, "a whole number from 0 on"));
        self.get(key).map(read).transpose()
    }

    /// A size with a default.
    ///
    /// # Errors
    /// When it is something else.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_or_none(key)?.unwrap_or(default))
    }

    /// A token id.
    ///
    /// # Errors
    /// When it is something else than a whole number (or, as some configs have it, a list, of
    /// which the first counts).
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.token_ids(key)?.first().copied())
    }

    /// The row of the words' table that training leaves as it is: `pad_token_id`. A negative one
    /// counts from the end, as torch's `padding_idx` does.
    ///
    /// # Errors
    /// When the table has no such row; as [`Config::token_id`].
    pub fn padding_row(&self) -> Result<Option<u32>> {
        let (key, rows) = ("pad_token_id", self.size("vocab_size")? as i64);
        let row = match self.get(key).and_then(Value::as_i64) {
            Some(id) if id < 0 => Some(rows + id),
            _ => self.token_id(key)?.map(i64::from),
        };
        let Some(row) = row else { return Ok(None) };
        let in_table = u32::try_from(row).ok().filter(|_| row < rows);
        let must_be = || format!("a row of the words' table, which has {rows} (`vocab_size`)");
        in_table.map(Some).ok_or_else(|| self.wrong(key, must_be()))
    }

    /// Token ids: none, one, or a list.
    ///
    /// # Errors
    /// When it is something else.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            // A negative id, as some configs have it, means that there is none.
            Some(v) if v.as_i64().is_some_and(|n| n < 0) => Some(Vec::new()),
            Some(v) => id(v).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, "a token id or a list of token ids"))
    }

    /// A finite number with a default.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    /// A finite number.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let read = |v: &Value| {
            v.as_f64().filter(|n| n.is_finite()).ok_or_else(|| self.wrong(key, "a finite number"))
        };
        self.get(key).map(read).transpose()
    }

    /// A number above 0 that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.wrong(key, "a number above 0")),
            number => Ok(number),
        }
    }

    /// A probability below 1, with a default.
    ///
    /// # Errors
    /// When it is something else.
    pub fn probability_or(&self, key: &str, default: f64) -> Result<f32> {
        match self.number_or(key, default)? {
            p if (0.0..1.0).contains(&p) => Ok(p as f32),
            _ => Err(self.wrong(key, "a probability: at least 0 and below 1")),
        }
    }

    /// A positive epsilon with a default.
    ///
    /// # Errors
    /// When it is something else.
    pub fn epsilon_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.positive(key)?.unwrap_or(default))
    }

    /// A switch with a default. `null` is off, as it is in Python.
    ///
    /// # Errors
    /// When it is something else than true or false.
    pub fn switch_or(&self, key: &str, default: bool) -> Result<bool> {
        let is_null = self.fields.get(self.key_of(key)).is_some_and(Value::is_null);
        match self.get(key) {
            None => Ok(default && !is_null),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A word that may be absent.
    ///
    /// # Errors
    /// When it is something else than a string.
    pub fn word(&self, key: &str) -> Result<Option<&str>> {
        let read = |v| Value::as_str(v).ok_or_else(|| self.wrong(key, "a string"));
        self.get(key).map(read).transpose()
    }

    /// A list of numbers above 0.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn positives(&self, key: &str) -> Result<Vec<f64>> {
        let number = |v: &Value| v.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        let list = self.get(key).and_then(Value::as_array);
        let list = list.and_then(|list| list.iter().map(number).collect());
        list.ok_or_else(|| self.wrong(key, "a list of numbers above 0"))
    }

    /// A list of words that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn words(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let words = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        words.map(Some).ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// A list of places, counted from 0; an absent one is empty.
    ///
    /// # Errors
    /// When it is something else.
    pub fn places(&self, key: &str) -> Result<Vec<usize>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let place = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let places = value.as_array().and_then(|list| list.iter().map(place).collect());
        places.ok_or_else(|| self.wrong(key, "a list of whole numbers"))
    }

    /// An object inside this one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn object(&self, key: &str) -> Result<Option<Config>> {
        let read = |v: &Value| {
            let fields = v.as_object().ok_or_else(|| self.wrong(key, "an object"))?.clone();
            Ok(Config {
                file: self.file.clone(),
                at: format!("{}{key}.", self.at),
                fields,
                aliases: &[],
                renamed: Vec::new(),
            })
        };
        self.get(key).map(read).transpose()
    }

    /// An activation function by its name in transformers.
    ///
    /// # Errors
    /// When it isn't known.
    pub fn activation(
        &self,
        key: &str,
        default: &str,
    ) -> Result<lowrank_autograd::ops::Activation> {
        let name = self.word(key)?.unwrap_or(default);
        lowrank_autograd::ops::Activation::named(name).ok_or_else(|| {
            self.not_implemented(
                key,
                "relu, silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, tanh",
            )
        })
    }

    /// The number of labels of a classification head: `num_labels`, or that of `id2label`, or 2.
    ///
    /// # Errors
    /// When either has another type.
    pub fn num_labels(&self) -> Result<usize> {
        match (self.size_or_none("num_labels")?, self.object("id2label")?) {
            (Some(n), _) => Ok(n),
            (None, Some(labels)) => Ok(labels.fields.len()),
            (None, None) => Ok(2),
        }
    }

    /// This config with values for the fields that it doesn't mention, as the class of a config in
    /// transformers has them; a field that is `null` stays so.
    pub fn with_defaults<const N: usize>(&self, defaults: [(&str, Value); N]) -> Self {
        let mut config = self.clone();
        for (key, value) in defaults {
            config.fields.entry(key).or_insert(value);
        }
        config
    }

    /// Replaces or adds a field.
    pub fn set(&mut self, key: &str, value: Value) {
        self.fields.insert(key.to_owned(), value);
    }

    /// Gives a field another name, unless one of that name is there. Errors go on calling it what
    /// the file does.
    pub fn rename(&mut self, name: &'static str, to: &'static str) {
        if let Some(value) = self.fields.remove(name) {
            self.fields.entry(to).or_insert(value);
        }
        self.renamed.push((to, name));
    }

    /// Removes a field.
    pub fn remove(&mut self, key: &str) {
        self.fields.remove(key);
    }
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return format!("`{text}`");
    }
    format!("`{}…`", text.chars().take(60).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_name_is_read_and_named_where_the_first_is_absent() -> Result<()> {
        let text = r#"{"wide": 8, "heads": 2, "n_heads": 3, "depth": "two"}"#;
        let c = Config::parse("config.json".to_owned(), text)?;
        let c = c.with_aliases(&[("width", "wide"), ("heads", "n_heads"), ("layers", "depth")]);
        assert_eq!((c.size("width")?, c.size("heads")?), (8, 2));
        let message = c.size("layers").expect_err("no number").to_string();
        assert!(message.contains("`depth` is `\"two\"`"), "{message}");
        let mut c = c;
        c.rename("n_heads", "groups");
        c.rename("depth", "layers");
        assert_eq!((c.size("groups")?, c.get("n_heads")), (3, None));
        let message = c.size("layers").expect_err("no number").to_string();
        assert!(message.contains("`depth` is `\"two\"`"), "{message}");
        Ok(())
    }

    #[test]
    fn a_switch_that_is_null_is_off() -> Result<()> {
        let c = Config::parse("config.json".to_owned(), r#"{"scaled": null, "on": true}"#)?;
        assert!(!c.switch_or("scaled", true)?);
        assert!(c.switch_or("on", false)? && c.switch_or("absent", true)?);
        Ok(())
    }
}
