//! Recipes: LLaMA-Factory's flat YAML or JSON maps, read unchanged.
//!
//! Two steps, as in ripgrep's flags: a [`Recipe`] is what was written, every key optional and
//! each with its place; [`Recipe::resolve`] makes it a [`Plan`], in which nothing is left unsaid
//! and nothing contradicts. Only plans are run. Which keys exist, and what becomes of each, is
//! one table: [`keys`].

mod error;
mod interpolation;
pub mod keys;
mod location;
mod overrides;
pub mod plan;
mod resolve;
mod scalar;
mod settings;
mod values;
mod yaml;

pub use error::{RecipeError, Setting};
pub use location::Location;
pub use plan::Plan;
pub use resolve::Notice;
pub use settings::SettingChange;

use indexmap::IndexMap;
use keys::{Key, Kind};
use std::path::Path;
use yaml::{Node, Value};

/// A recipe as written: every key optional, nothing checked against anything else yet.
/// Keys are known, not twice there, and their values have the type and range of [`keys`].
#[derive(Debug, Clone)]
pub struct Recipe {
    whole: Location,
    entries: IndexMap<&'static str, Entry>,
}

/// A key as it was written, maybe by an alias, with its value.
#[derive(Debug, Clone)]
struct Entry {
    at: Location,
    spelling: String,
    node: Node,
}

impl Recipe {
    /// Reads a recipe file and applies `overrides`, each `key=value`, `--key=value`, or the two
    /// words `--key value`.
    ///
    /// # Errors
    /// Whatever is wrong with the file or an override, with file and line.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let origin = path.display().to_string();
        let read = std::fs::read(path);
        let bytes = read.map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| RecipeError::Yaml {
            at: Location::whole(&origin),
            why: "not UTF-8 text".to_owned(),
        })?;
        Self::parse(&text, &origin, overrides)
    }

    /// Reads a recipe from `text`; `origin` is the name that errors give it. An empty text is a
    /// recipe in which everything comes from `overrides`.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        Self::parse_with(text, origin, overrides, &|name| std::env::var(name).ok())
    }

    /// [`Recipe::parse`] with another source of the variables that `${oc.env:NAME}` names.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse_with(
        text: &str,
        origin: &str,
        overrides: &[String],
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, RecipeError> {
        let whole = Location::whole(origin);
        let mut entries = entries(yaml::parse(text, &whole)?)?;
        overrides::apply(overrides, &mut entries)?;
        interpolation::expand(&mut entries, variable)?;
        entries.iter_mut().for_each(|(name, entry)| unquote_map(name, entry));
        let recipe = Self { whole, entries };
        recipe.check_types()?;
        Ok(recipe)
    }

    /// The keys that were written, with their values and places, in their order.
    pub fn written(&self) -> impl Iterator<Item = (&'static str, String, &Location)> {
        self.entries.iter().map(|(name, entry)| (*name, entry.node.shown(), &entry.at))
    }

    /// Where `key` was written, if it was.
    pub fn location(&self, key: &str) -> Option<&Location> {
        self.entries.get(key).map(|entry| &entry.at)
    }

    fn check_types(&self) -> Result<(), RecipeError> {
        for (name, entry) in &self.entries {
            let Some(key) = keys::find(name) else { continue };
            if !entry.node.is_null() && !key.kind.accepts(&entry.node) {
                return Err(bad_value(entry, key.kind.describe()));
            }
        }
        Ok(())
    }
}

fn bad_value(entry: &Entry, must_be: String) -> RecipeError {
    RecipeError::BadValue {
        at: entry.at.clone(),
        key: entry.spelling.clone(),
        found: entry.node.shown(),
        must_be,
    }
}

/// The entries of the outermost map, by the keys' own names.
fn entries(root: Node) -> Result<IndexMap<&'static str, Entry>, RecipeError> {
    let written = match root.value {
        Value::Map(written) => written,
        _ if root.is_null() => Vec::new(),
        _ => {
            let why =
                format!("a recipe is a map of keys to values, but this is `{}`", root.shown());
            return Err(RecipeError::Yaml { at: root.at, why });
        }
    };
    let mut entries: IndexMap<&'static str, Entry> = IndexMap::with_capacity(written.len());
    for (key, node) in written {
        let known = known(&key.text, &key.at)?;
        let entry = Entry { at: key.at, spelling: key.text, node };
        if let Some(first) = entries.get(known.name) {
            return Err(duplicate(&entry, first));
        }
        entries.insert(known.name, entry);
    }
    Ok(entries)
}

/// A map may be written as text, as transformers takes it: `lr_scheduler_kwargs: '{"min_lr": 0}'`.
fn unquote_map(name: &str, entry: &mut Entry) {
    let is_table = keys::find(name).is_some_and(|key| key.kind == Kind::Table);
    let Value::Scalar { text, .. } = &entry.node.value else { return };
    if is_table && text.starts_with('{') {
        // Text that is no map stays a word, which the key's type then refuses.
        if let Ok(node) = yaml::parse(text, &entry.at) {
            entry.node = node.all_at(&entry.at);
        }
    }
}

fn known(spelling: &str, at: &Location) -> Result<&'static Key, RecipeError> {
    keys::find(spelling).ok_or_else(|| RecipeError::UnknownKey {
        at: at.clone(),
        key: spelling.to_owned(),
        nearest: keys::nearest(spelling),
    })
}

fn duplicate(entry: &Entry, first: &Entry) -> RecipeError {
    RecipeError::Duplicate {
        at: entry.at.clone(),
        key: entry.spelling.clone(),
        first: first.at.clone(),
        first_key: first.spelling.clone(),
    }
}
