//! Reads the typed value of a key: what was written, or else the default that [`keys`] lists,
//! so that the defaults in the help are the ones that are used.

use super::error::Setting;
use super::keys::{self, Key};
use super::scalar::{as_bool, as_integer, as_number};
use super::yaml::{Node, Value};
use super::{Location, Recipe, RecipeError};
use indexmap::IndexMap;
use std::path::PathBuf;

/// A type that a key's value can have.
pub(super) trait FromNode: Sized {
    /// The value, or `None` if the node says something else.
    fn from_node(node: &Node) -> Option<Self>;
}

impl Recipe {
    /// The value of `name`, or its default; a key without default must be written.
    pub(super) fn get<T: FromNode>(&self, name: &'static str) -> Result<T, RecipeError> {
        self.opt(name)?.ok_or_else(|| self.missing(name, "it has no default"))
    }

    /// The value of `name`, or its default; `None` if it is null.
    pub(super) fn opt<T: FromNode>(&self, name: &'static str) -> Result<Option<T>, RecipeError> {
        let Some(node) = self.node(name) else { return Ok(None) };
        match T::from_node(&node) {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad(name, kind_of(name))),
        }
    }

    /// What stands at `name`: as written, or the default. Null is `None`.
    pub(super) fn node(&self, name: &str) -> Option<Node> {
        match self.entries.get(name) {
            Some(entry) if !entry.node.is_null() => Some(entry.node.clone()),
            _ => default_node(keys::find(name)?),
        }
    }

    /// Whether `name` was written and isn't null.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| !entry.node.is_null())
    }

    /// Whether `name` was written as null, where that isn't the same as leaving it out.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.node.is_null())
    }

    pub(super) fn missing(&self, key: &'static str, why: &'static str) -> RecipeError {
        RecipeError::Missing { at: self.whole.clone(), key, why }
    }

    /// The error for a value of `name` that isn't `must_be`.
    pub(super) fn bad(&self, name: &'static str, must_be: impl Into<String>) -> RecipeError {
        RecipeError::BadValue {
            at: self.place(name),
            key: self.spelling(name),
            found: self.shown(name),
            must_be: must_be.into(),
        }
    }

    /// The error for a value of `name` that is right but not implemented.
    pub(super) fn not_yet(&self, name: &'static str, instead: impl Into<String>) -> RecipeError {
        RecipeError::NotImplemented {
            at: self.place(name),
            key: self.spelling(name),
            value: self.shown(name),
            instead: instead.into(),
        }
    }

    /// The error for two keys that don't go together; its place is that of the first one written.
    pub(super) fn contradiction(
        &self,
        one: &'static str,
        other: &'static str,
        rule: impl Into<String>,
    ) -> RecipeError {
        let at = [one, other].into_iter().find(|key| self.is_set(key));
        RecipeError::Contradiction {
            at: self.place(at.unwrap_or(one)),
            one: Box::new(self.setting(one)),
            other: Box::new(self.setting(other)),
            rule: rule.into(),
        }
    }

    fn setting(&self, key: &'static str) -> Setting {
        let at = self.entries.get(key).filter(|entry| !entry.node.is_null());
        Setting { key, value: self.shown(key), at: at.map(|entry| entry.at.clone()) }
    }

    /// Where `name` was written, or else the recipe as a whole.
    pub(super) fn place(&self, name: &str) -> Location {
        self.location(name).cloned().unwrap_or_else(|| self.whole.clone())
    }

    fn spelling(&self, name: &str) -> String {
        self.entries.get(name).map_or_else(|| name.to_owned(), |entry| entry.spelling.clone())
    }

    fn shown(&self, name: &str) -> String {
        self.node(name).map_or_else(|| "null".to_owned(), |node| node.shown())
    }
}

fn kind_of(name: &str) -> String {
    keys::find(name).map_or_else(String::new, |key| key.kind.describe())
}

/// The default of a key as a node; the table writes it as a recipe would.
pub(super) fn default_node(key: &Key) -> Option<Node> {
    let at = Location::whole("default");
    match (key.default?, key.kind) {
        ("{}", keys::Kind::Table) => Some(Node { at, value: Value::Map(Vec::new()) }),
        (text, _) => Some(Node::plain(at, text)),
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}

impl FromNode for bool {
    fn from_node(node: &Node) -> Option<Self> {
        as_bool(text(node)?)
    }
}

impl FromNode for i64 {
    fn from_node(node: &Node) -> Option<Self> {
        as_integer(text(node)?)
    }
}

impl FromNode for u64 {
    fn from_node(node: &Node) -> Option<Self> {
        as_integer(text(node)?)?.try_into().ok()
    }
}

impl FromNode for usize {
    fn from_node(node: &Node) -> Option<Self> {
        as_integer(text(node)?)?.try_into().ok()
    }
}

impl FromNode for f64 {
    fn from_node(node: &Node) -> Option<Self> {
        as_number(text(node)?).filter(|value| value.is_finite())
    }
}

impl FromNode for String {
    fn from_node(node: &Node) -> Option<Self> {
        text(node).map(str::to_owned)
    }
}

impl FromNode for PathBuf {
    fn from_node(node: &Node) -> Option<Self> {
        text(node).map(PathBuf::from)
    }
}

/// A list; text is split at commas, as LLaMA-Factory does.
impl FromNode for Vec<String> {
    fn from_node(node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, .. } => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(parts.map(str::to_owned).collect())
            }
            Value::List(items) => items.iter().map(String::from_node).collect(),
            Value::Map(_) => None,
        }
    }
}

/// One index or a list of them.
impl FromNode for Vec<usize> {
    fn from_node(node: &Node) -> Option<Self> {
        match &node.value {
            Value::List(items) => items.iter().map(usize::from_node).collect(),
            _ => usize::from_node(node).map(|one| vec![one]),
        }
    }
}

impl<T: FromNode> FromNode for IndexMap<String, T> {
    fn from_node(node: &Node) -> Option<Self> {
        let Value::Map(entries) = &node.value else { return None };
        entries.iter().map(|(key, value)| Some((key.text.clone(), T::from_node(value)?))).collect()
    }
}

/// Any value, with YAML's own types for its scalars.
impl FromNode for serde_json::Value {
    fn from_node(node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, quoted: true } => Some(Self::String(text.clone())),
            Value::Scalar { text, quoted: false } => Some(plain_json(text)),
            Value::List(items) => {
                items.iter().map(Self::from_node).collect::<Option<_>>().map(Self::Array)
            }
            Value::Map(entries) => {
                let pairs =
                    entries.iter().map(|(k, v)| Some((k.text.clone(), Self::from_node(v)?)));
                pairs.collect::<Option<_>>().map(Self::Object)
            }
        }
    }
}

fn plain_json(text: &str) -> serde_json::Value {
    if super::scalar::is_null(text) {
        return serde_json::Value::Null;
    }
    if let Some(value) = as_bool(text) {
        return value.into();
    }
    if let Some(value) = as_integer(text) {
        return value.into();
    }
    let number = as_number(text).and_then(serde_json::Number::from_f64);
    number.map_or_else(|| text.into(), serde_json::Value::Number)
}
