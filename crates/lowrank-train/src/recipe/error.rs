//! What can be wrong with a recipe. Every message says where, what, and what to write instead.

use super::Location;
use crate::schedule::ScheduleError;
use std::fmt;
use std::path::PathBuf;

/// A recipe that can't be read or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum RecipeError {
    #[error("can't read the recipe `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error("{at}: {why}")]
    Yaml { at: Location, why: String },

    #[error("{at}: unknown key `{key}`{}", did_you_mean(.nearest))]
    UnknownKey { at: Location, key: String, nearest: Option<&'static str> },

    #[error(
        "{at}: `{key}` was already set{} at {first}; keep one of the two",
        as_spelled(key, first_key)
    )]
    Duplicate { at: Location, key: String, first: Location, first_key: String },

    #[error("{at}: `{key}` is `{found}`; it must be {must_be}")]
    BadValue { at: Location, key: String, found: String, must_be: String },

    #[error("{at}: `{key}` isn't set; {why}")]
    Missing { at: Location, key: &'static str, why: &'static str },

    #[error("{at}: {} contradicts {other}: {rule}", one.at_the_place(at))]
    Contradiction { at: Location, one: Box<Setting>, other: Box<Setting>, rule: String },

    #[error("{at}: {why}")]
    Schedule { at: Location, why: ScheduleError },

    #[error("{at}: `{key}: {value}` isn't implemented in this release; {instead}")]
    NotImplemented { at: Location, key: String, value: String, instead: String },

    #[error("{at}: `{key}` contains `{expression}`: {why}")]
    Interpolation { at: Location, key: String, expression: String, why: String },

    #[error("command line: `{argument}` isn't a setting: {why}")]
    Override { argument: String, why: &'static str },
}

/// One side of a contradiction: a key, the value it has, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key, in its own spelling (not an alias).
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// Where it was written; `None` if the value is the default.
    pub at: Option<Location>,
}

impl Setting {
    /// The setting, without its place if the message has begun with that.
    fn at_the_place(&self, begun: &Location) -> String {
        match &self.at {
            Some(at) if at == begun => format!("`{}: {}`", self.key, self.value),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}: {}` ", self.key, self.value)?;
        match &self.at {
            Some(at) => write!(f, "({at})"),
            None => f.write_str("(the default)"),
        }
    }
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; `lowrank help recipe` lists all keys".to_owned(),
    }
}

fn as_spelled(key: &str, first_key: &str) -> String {
    if key == first_key { String::new() } else { format!(" as `{first_key}`") }
}
