//! YAML (and JSON, which is YAML) to a small tree that remembers lines and quotes.
//!
//! The parser's events are read rather than a serde value, because a recipe needs what serde
//! drops: the line of each key, whether a scalar was quoted, and both places of a duplicate key.
//! All use of the YAML library is in this file.

use super::{Location, RecipeError};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Longest recipe in bytes; real ones have a few kilobytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Most nodes of a recipe, each alias counted as all that it repeats.
const MAX_NODES: usize = 20_000;
/// Deepest nesting; a recipe needs three levels.
const MAX_DEPTH: usize = 16;

/// A value with the place where it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) at: Location,
    pub(super) value: Value,
}

/// What was written. Scalars keep their text; `scalar.rs` says what it means.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Scalar { text: String, quoted: bool },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map, with its own place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) at: Location,
    pub(super) text: String,
}

impl Node {
    /// An unquoted scalar, as an override or a default is.
    pub(super) fn plain(at: Location, text: &str) -> Self {
        Self { at, value: Value::Scalar { text: text.to_owned(), quoted: false } }
    }

    /// The same value, all of it placed at `at`: for text whose own lines mean nothing.
    pub(super) fn all_at(self, at: &Location) -> Self {
        let value = match self.value {
            Value::List(items) => {
                Value::List(items.into_iter().map(|item| item.all_at(at)).collect())
            }
            Value::Map(entries) => {
                let key = |key: Key| Key { at: at.clone(), text: key.text };
                let entries = entries.into_iter().map(|(k, node)| (key(k), node.all_at(at)));
                Value::Map(entries.collect())
            }
            scalar @ Value::Scalar { .. } => scalar,
        };
        Self { at: at.clone(), value }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, quoted: false } if super::scalar::is_null(text))
    }

    /// The value on one line, for messages.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Scalar { text, quoted: false } => text.clone(),
            Value::Scalar { text, quoted: true } => format!("{text:?}"),
            Value::List(items) => format!("[{}]", joined(items.iter().map(Node::shown))),
            Value::Map(entries) => {
                let shown =
                    entries.iter().map(|(key, node)| format!("{}: {}", key.text, node.shown()));
                format!("{{{}}}", joined(shown))
            }
        }
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// Reads the one document of `text`; an empty text is an empty map.
///
/// # Errors
/// [`RecipeError::Yaml`] for text that isn't YAML, for more than one document, and for sizes
/// beyond the limits above; [`RecipeError::Duplicate`] for a key that a nested map has twice
/// (the outermost map is left to the caller, who knows the aliases of keys).
pub(super) fn parse(text: &str, whole: &Location) -> Result<Node, RecipeError> {
    if text.len() > MAX_BYTES {
        return Err(yaml(
            whole.clone(),
            format!("longer than {MAX_BYTES} bytes, too long for a recipe"),
        ));
    }
    let mut tree =
        Tree { events: Parser::new_from_str(text), whole, anchors: BTreeMap::new(), nodes: 0 };
    tree.document()
}

fn yaml(at: Location, why: impl Into<String>) -> RecipeError {
    RecipeError::Yaml { at, why: why.into() }
}

/// Builds the tree of one document out of the parser's events.
struct Tree<'a> {
    events: Parser<'a, StrInput<'a>>,
    whole: &'a Location,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Tree<'a> {
    fn document(&mut self) -> Result<Node, RecipeError> {
        let mut root = None;
        while let Some((event, at)) = self.next()? {
            match event {
                Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(..)
                | Event::DocumentEnd => {}
                _ if root.is_some() => {
                    return Err(yaml(at, "a second document begins; a recipe is one map"));
                }
                event => root = Some(self.node(event, at, 0)?),
            }
        }
        let empty = || Node { at: self.whole.clone(), value: Value::Map(Vec::new()) };
        Ok(root.unwrap_or_else(empty))
    }

    /// The next event that isn't a comment, with its line.
    fn next(&mut self) -> Result<Option<(Event<'a>, Location)>, RecipeError> {
        loop {
            match self.events.next_event() {
                None => return Ok(None),
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok((event, span))) => return Ok(Some((event, self.at(&span)))),
                Some(Err(error)) => return Err(self.syntax(&error)),
            }
        }
    }

    fn at(&self, span: &Span) -> Location {
        self.whole.line(span.start.line())
    }

    fn syntax(&self, error: &ScanError) -> RecipeError {
        let marker = error.marker();
        let why = format!("not valid YAML: {} (column {})", error.info(), marker.col() + 1);
        yaml(self.whole.line(marker.line()), why)
    }

    fn within_budget(
        &mut self,
        nodes: usize,
        depth: usize,
        at: &Location,
    ) -> Result<(), RecipeError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(yaml(
                at.clone(),
                format!("more than {MAX_NODES} values, too many for a recipe"),
            ));
        }
        if depth > MAX_DEPTH {
            return Err(yaml(at.clone(), format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, at: Location, depth: usize) -> Result<Node, RecipeError> {
        self.within_budget(1, depth, &at)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (scalar(&text, style, tag, &at)?, anchor),
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(id) => return self.alias(id, at, depth),
            _ => return Err(yaml(at, "a value was expected here")),
        };
        let node = Node { at, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, at: Location, depth: usize) -> Result<Node, RecipeError> {
        let Some(target) = self.anchors.get(&id).cloned() else {
            return Err(yaml(at, "an alias inside the value that it names"));
        };
        let (nodes, levels) = extent(&target);
        self.within_budget(nodes, depth.saturating_add(levels), &at)?;
        Ok(Node { at, value: target.value })
    }

    fn list(&mut self, depth: usize) -> Result<Value, RecipeError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                None | Some((Event::SequenceEnd, _)) => return Ok(Value::List(items)),
                Some((event, at)) => items.push(self.node(event, at, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, RecipeError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let key = match self.next()? {
                None | Some((Event::MappingEnd, _)) => return Ok(Value::Map(entries)),
                Some((event, at)) => key_of(self.node(event, at, depth + 1)?)?,
            };
            let Some((event, at)) = self.next()? else { return Ok(Value::Map(entries)) };
            let node = self.node(event, at, depth + 1)?;
            let earlier = entries.iter().find(|(k, _)| depth > 0 && k.text == key.text);
            if let Some((first, _)) = earlier {
                return Err(twice(&key, first));
            }
            entries.push((key, node));
        }
    }
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<Cow<'_, Tag>>,
    at: &Location,
) -> Result<Value, RecipeError> {
    let quoted = match tag.as_deref() {
        None => style != ScalarStyle::Plain,
        Some(tag) if tag.is_yaml_core_schema_tag("str") => true,
        Some(tag) if tag.is_yaml_core_schema() => false,
        Some(tag) => {
            return Err(yaml(
                at.clone(),
                format!("the tag `{}` means nothing here", tag.original()),
            ));
        }
    };
    Ok(Value::Scalar { text: text.to_owned(), quoted })
}

fn key_of(node: Node) -> Result<Key, RecipeError> {
    match node.value {
        Value::Scalar { text, .. } => Ok(Key { at: node.at, text }),
        Value::List(_) | Value::Map(_) => Err(yaml(node.at, "a key must be a word")),
    }
}

fn twice(key: &Key, first: &Key) -> RecipeError {
    RecipeError::Duplicate {
        at: key.at.clone(),
        key: key.text.clone(),
        first: first.at.clone(),
        first_key: first.text.clone(),
    }
}

/// Number of nodes and of levels; the depth is limited, so the recursion is too.
fn extent(node: &Node) -> (usize, usize) {
    let children: Vec<&Node> = match &node.value {
        Value::Scalar { .. } => return (1, 0),
        Value::List(items) => items.iter().collect(),
        Value::Map(entries) => entries.iter().map(|(_, node)| node).collect(),
    };
    let extents = children.into_iter().map(extent);
    let (nodes, levels) = extents.fold((1, 0), |(n, l), (m, k)| (n + m, l.max(k)));
    (nodes, levels + 1)
}
