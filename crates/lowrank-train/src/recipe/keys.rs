//! The table of all recipe keys: what the reader accepts, what `lowrank help recipe` prints and
//! what the docs page lists are the same entries.
//!
//! Names, types and defaults are LLaMA-Factory's (0.9.6.dev0) and transformers'; the last section
//! holds lowrank's own. A file below holds one section, sorted by name.

mod dataset;
mod engines;
mod export;
mod generation;
mod lowrank;
mod method;
mod model;
mod page;
mod preference;
mod training;

use super::scalar::{as_bool, as_integer, as_number};
use super::yaml::{Node, Value};
pub use page::{help_text, markdown};

/// One key of a recipe.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name it has in LLaMA-Factory, or in PEFT for lowrank's own.
    pub name: &'static str,
    /// Other spellings, accepted wherever the name is.
    pub aliases: &'static [&'static str],
    /// What its value must be.
    pub kind: Kind,
    /// The default as it would be written; `None` is null.
    pub default: Option<&'static str>,
    /// What it does, in one line.
    pub doc: &'static str,
    /// Whether this release obeys it.
    pub status: Status,
}

/// What this release does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Obeyed.
    Implemented,
    /// Accepted and reported once, with this reason; it can't change the result.
    Ignored(&'static str),
    /// Would change the result and is refused, unless it has its default; with what to do instead.
    NotYet(Option<&'static str>),
}

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// true or false.
    Switch,
    /// A word, a name, a path.
    Text,
    /// A whole number, this or more.
    Whole(i64),
    /// A finite number in a range.
    Number(Range),
    /// A whole number of steps, or a share of the run below 1.
    Steps,
    /// Names, as a list or separated by commas.
    Names,
    /// A map.
    Table,
    /// One of some words; those of `later` are known but not implemented.
    OneOf {
        /// The words that work.
        here: &'static [&'static str],
        /// LLaMA-Factory's (or PEFT's) other words.
        later: &'static [&'static str],
    },
    /// More than one type; the text says which.
    Mixed(&'static str),
    /// Not looked at.
    Any,
}

/// Bounds of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Any finite number.
    Finite,
    /// Above 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// From 0 to 1, both allowed.
    UpToOne,
    /// From 0 to 1, without 1.
    BelowOne,
    /// From 0 to 1, without 0.
    AboveZeroUpToOne,
}

impl Range {
    fn contains(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Finite => true,
                Self::Positive => value > 0.0,
                Self::NotNegative => value >= 0.0,
                Self::UpToOne => (0.0..=1.0).contains(&value),
                Self::BelowOne => (0.0..1.0).contains(&value),
                Self::AboveZeroUpToOne => value > 0.0 && value <= 1.0,
            }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Finite => "a finite number",
            Self::Positive => "a number above 0",
            Self::NotNegative => "a number, 0 or more",
            Self::UpToOne => "a number from 0 to 1",
            Self::BelowOne => "a number from 0 up to, but not including, 1",
            Self::AboveZeroUpToOne => "a number above 0 and at most 1",
        }
    }
}

impl Kind {
    /// The end of the sentence "it must be …".
    pub fn describe(self) -> String {
        match self {
            Self::Switch => "true or false, without quotes".to_owned(),
            Self::Text => "a word or a path".to_owned(),
            Self::Whole(0) => "a whole number, 0 or more".to_owned(),
            Self::Whole(i64::MIN) => "a whole number".to_owned(),
            Self::Whole(least) => format!("a whole number, {least} or more"),
            Self::Number(range) => range.describe().to_owned(),
            Self::Steps => "a whole number, or a share of the run between 0 and 1".to_owned(),
            Self::Names => "names separated by commas, or a list of names".to_owned(),
            Self::Table => "a map, such as `{name: value}`".to_owned(),
            Self::OneOf { here, .. } => one_of(here),
            Self::Mixed(what) => what.to_owned(),
            Self::Any => "anything".to_owned(),
        }
    }

    /// Whether a value that isn't null has this type and lies in its range.
    pub(super) fn accepts(self, node: &Node) -> bool {
        let (text, quoted) = match &node.value {
            Value::Scalar { text, quoted } => (text.as_str(), *quoted),
            Value::List(items) if self == Self::Names => return items.iter().all(is_scalar),
            Value::List(_) => return matches!(self, Self::Mixed(_) | Self::Any),
            Value::Map(_) => return matches!(self, Self::Table | Self::Mixed(_) | Self::Any),
        };
        match self {
            Self::Switch => !quoted && as_bool(text).is_some(),
            Self::Text => !text.is_empty(),
            Self::Whole(least) => as_integer(text).is_some_and(|value| value >= least),
            Self::Number(range) => as_number(text).is_some_and(|value| range.contains(value)),
            Self::Steps => as_number(text).is_some_and(is_step_count),
            Self::Names | Self::Mixed(_) | Self::Any => true,
            Self::Table => false,
            Self::OneOf { here, later } => here.contains(&text) || later.contains(&text),
        }
    }
}

/// Words in a sentence: "`a`, `b` or `c`".
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn is_scalar(node: &Node) -> bool {
    matches!(node.value, Value::Scalar { .. }) && !node.is_null()
}

fn is_step_count(value: f64) -> bool {
    value > 0.0 && (value < 1.0 || (value.fract() == 0.0 && value < 1e15))
}

/// A part of the table, under the heading that help and docs give it.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// Its keys, sorted by name.
    pub keys: &'static [Key],
}

/// The whole table.
pub static SECTIONS: &[Section] = &[
    Section { title: "Model", keys: model::KEYS },
    Section { title: "Method", keys: method::KEYS },
    Section { title: "lowrank's own", keys: lowrank::KEYS },
    Section { title: "Dataset", keys: dataset::KEYS },
    Section { title: "Training", keys: training::KEYS },
    Section { title: "Generation", keys: generation::KEYS },
    Section { title: "Export", keys: export::KEYS },
    Section { title: "Preference and RLHF", keys: preference::KEYS },
    Section { title: "Benchmarks", keys: generation::BENCHMARK_KEYS },
    Section { title: "Processes and devices", keys: &engines::DISTRIBUTED },
    Section { title: "FP8", keys: &engines::FP8 },
    Section { title: "Profiling", keys: &engines::PROFILING },
    Section { title: "SwanLab", keys: &engines::SWANLAB },
    Section { title: "KTransformers", keys: &engines::KTRANSFORMERS },
    Section { title: "Megatron Bridge and other back ends", keys: &engines::MEGATRON },
    Section { title: "Inference engines", keys: &engines::INFERENCE },
];

/// Every key, section by section.
pub fn all() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// The key of this name or alias.
pub fn find(name: &str) -> Option<&'static Key> {
    all().find(|key| key.name == name || key.aliases.contains(&name))
}

/// The name or alias that looks most like `name`, if any is close.
pub fn nearest(name: &str) -> Option<&'static str> {
    let limit = 1 + name.chars().count() / 4;
    let spellings = all().flat_map(|key| std::iter::once(&key.name).chain(key.aliases));
    let near = spellings.map(|known| (strsim::damerau_levenshtein(name, known), *known));
    near.filter(|(distance, _)| *distance <= limit).min().map(|(_, known)| known)
}

/// An implemented key. A default of `-` is null, as in LLaMA-Factory's own lists.
const fn here(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    let default = if let [b'-'] = default.as_bytes() { None } else { Some(default) };
    Key { name, aliases: &[], kind, default, doc, status: Status::Implemented }
}

/// A key that would change the result and isn't implemented.
const fn later(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { status: Status::NotYet(None), ..here(name, kind, default, doc) }
}

/// A key that can't change the result here.
const fn ignored(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
    reason: &'static str,
) -> Key {
    Key { status: Status::Ignored(reason), ..here(name, kind, default, doc) }
}

impl Key {
    const fn or(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn instead(self, what: &'static str) -> Self {
        Self { status: Status::NotYet(Some(what)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_section_is_sorted_and_every_spelling_is_unique() {
        let mut seen = BTreeSet::new();
        for section in SECTIONS {
            let names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
            let mut sorted = names.clone();
            sorted.sort_unstable();
            assert_eq!(names, sorted, "{}", section.title);
        }
        for key in all() {
            for spelling in std::iter::once(&key.name).chain(key.aliases) {
                assert!(seen.insert(*spelling), "`{spelling}` is there twice");
            }
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_key() {
        for key in all() {
            if let Some(default) = key.default {
                let node = Node::plain(super::super::Location::whole("default"), default);
                let braces = default == "{}" && key.kind == Kind::Table;
                assert!(braces || key.kind.accepts(&node), "{}: {default}", key.name);
            }
        }
    }
}
