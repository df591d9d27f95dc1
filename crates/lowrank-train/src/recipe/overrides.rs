//! Settings from the command line: `key=value` as OmegaConf takes them, and the flag spellings
//! `--key=value`, `--key value` and `--switch`. They win over the file, and the last one wins.

use super::keys::{Key, Kind};
use super::scalar::as_bool;
use super::yaml::{self, Node, Value};
use super::{Entry, Location, RecipeError, known};
use indexmap::IndexMap;

/// Sets in `entries` what `arguments` say.
pub(super) fn apply(
    arguments: &[String],
    entries: &mut IndexMap<&'static str, Entry>,
) -> Result<(), RecipeError> {
    let at = Location::whole("command line");
    let mut rest = arguments.iter().map(String::as_str).peekable();
    while let Some(argument) = rest.next() {
        let (name, inline) = split(argument)?;
        let (spelling, inner) = split_path(&name);
        let key = known(spelling, &at)?;
        let value = match inline {
            Some(value) => value.to_owned(),
            None if inner.is_none() && key.kind == Kind::Switch => {
                rest.next_if(|next| as_bool(next).is_some()).unwrap_or("true").to_owned()
            }
            None => rest
                .next()
                .ok_or_else(|| not_a_setting(argument, "its value is missing"))?
                .to_owned(),
        };
        set(entries, key, spelling, inner, value_node(&value, &at));
    }
    Ok(())
}

/// The key of an argument, and its value if it stands behind `=`.
fn split(argument: &str) -> Result<(String, Option<&str>), RecipeError> {
    let (bare, flag) = match argument.strip_prefix("--") {
        Some(bare) => (bare, true),
        None => (argument, false),
    };
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value)),
        None => (bare, None),
    };
    if name.is_empty() || (value.is_none() && !flag) {
        return Err(not_a_setting(argument, "write `key=value` or `--key value`"));
    }
    // transformers takes `--lora-rank` for `--lora_rank`.
    Ok((if flag { name.replace('-', "_") } else { name.to_owned() }, value))
}

/// `lr_scheduler_kwargs.min_lr` sets one entry of a map; what follows the first dot is its key.
fn split_path(name: &str) -> (&str, Option<&str>) {
    match name.split_once('.') {
        Some((key, inner)) => (key, Some(inner)),
        None => (name, None),
    }
}

fn not_a_setting(argument: &str, why: &'static str) -> RecipeError {
    RecipeError::Override { argument: argument.to_owned(), why }
}

/// A list, map or quoted word if it reads as one; else the words as they stand, so that a regex
/// needs no quotes beyond the shell's.
fn value_node(value: &str, at: &Location) -> Node {
    let structured = value.trim_start().starts_with(['[', '{', '"', '\'']);
    match yaml::parse(value, at) {
        Ok(node) if structured => node.all_at(at),
        _ => Node::plain(at.clone(), value.trim()),
    }
}

fn set(
    entries: &mut IndexMap<&'static str, Entry>,
    key: &'static Key,
    spelling: &str,
    inner: Option<&str>,
    node: Node,
) {
    let at = node.at.clone();
    let node = match inner {
        None => node,
        Some(inner) => with_inner(entries.get(key.name), inner, node),
    };
    entries.insert(key.name, Entry { at, spelling: spelling.to_owned(), node });
}

fn with_inner(before: Option<&Entry>, inner: &str, node: Node) -> Node {
    let mut map = match before.map(|entry| &entry.node.value) {
        Some(Value::Map(map)) => map.clone(),
        _ => Vec::new(),
    };
    let at = node.at.clone();
    map.retain(|(key, _)| key.text != inner);
    map.push((yaml::Key { at: at.clone(), text: inner.to_owned() }, node));
    Node { at, value: Value::Map(map) }
}
