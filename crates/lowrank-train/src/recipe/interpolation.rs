//! OmegaConf's `${key}` and `${oc.env:NAME,default}`; other resolvers are refused by name.

use super::yaml::{Node, Value};
use super::{Entry, RecipeError, keys};
use indexmap::IndexMap;

/// Most work of all interpolations of a recipe, counted in bytes and values that they produce.
/// Without it a chain of keys that each name the next one twice would never end.
const MAX_WORK: usize = 100_000;

/// Longest chain of keys that refer to each other.
const MAX_CHAIN: usize = 8;

/// Replaces every interpolation in `entries`.
pub(super) fn expand(
    entries: &mut IndexMap<&'static str, Entry>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(), RecipeError> {
    let mut expanded = Vec::with_capacity(entries.len());
    let mut expander = Expander { entries, variable, work: 0 };
    for (name, entry) in expander.entries {
        expanded.push(expander.node(&entry.node, entry, &mut vec![name])?);
    }
    for (entry, node) in entries.values_mut().zip(expanded) {
        entry.node = node;
    }
    Ok(())
}

struct Expander<'a> {
    entries: &'a IndexMap<&'static str, Entry>,
    variable: &'a dyn Fn(&str) -> Option<String>,
    work: usize,
}

impl Expander<'_> {
    /// `node` of `entry` with its interpolations replaced; `trail` are the keys being expanded.
    fn node(
        &mut self,
        node: &Node,
        entry: &Entry,
        trail: &mut Vec<&'static str>,
    ) -> Result<Node, RecipeError> {
        let value = match &node.value {
            Value::Scalar { text, quoted } if text.contains("${") => {
                return self.scalar(node, text, *quoted, entry, trail);
            }
            Value::Scalar { .. } => node.value.clone(),
            Value::List(items) => {
                let items = items.iter().map(|item| self.node(item, entry, trail));
                Value::List(items.collect::<Result<_, _>>()?)
            }
            Value::Map(map) => {
                let map = map
                    .iter()
                    .map(|(key, value)| Ok((key.clone(), self.node(value, entry, trail)?)));
                Value::Map(map.collect::<Result<_, RecipeError>>()?)
            }
        };
        Ok(Node { at: node.at.clone(), value })
    }

    /// A scalar that is one interpolation takes the value as it is; within more text, its words.
    fn scalar(
        &mut self,
        node: &Node,
        text: &str,
        quoted: bool,
        entry: &Entry,
        trail: &mut Vec<&'static str>,
    ) -> Result<Node, RecipeError> {
        let mut done = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let (before, from) = (&rest[..start], &rest[start..]);
            if let Some(before) = before.strip_suffix('\\') {
                done.push_str(before);
                done.push_str("${");
                rest = &from[2..];
                continue;
            }
            let Some(end) = from.find('}') else {
                return Err(wrong(entry, from, "the `}` is missing".to_owned()));
            };
            let (expression, after) = (&from[..=end], &from[end + 1..]);
            let value = self.evaluate(expression, &from[2..end], entry, trail)?;
            if done.is_empty() && before.is_empty() && after.is_empty() {
                return Ok(Node { at: node.at.clone(), value: value.value });
            }
            let Value::Scalar { text, .. } = value.value else {
                let why = "only a word or a number can stand inside text".to_owned();
                return Err(wrong(entry, expression, why));
            };
            done.push_str(before);
            done.push_str(&text);
            rest = after;
        }
        done.push_str(rest);
        self.spend(done.len(), entry, text)?;
        Ok(Node { at: node.at.clone(), value: Value::Scalar { text: done, quoted } })
    }

    fn evaluate(
        &mut self,
        expression: &str,
        inner: &str,
        entry: &Entry,
        trail: &mut Vec<&'static str>,
    ) -> Result<Node, RecipeError> {
        self.spend(1, entry, expression)?;
        if let Some(arguments) = inner.strip_prefix("oc.env:") {
            return self.environment(expression, arguments, entry);
        }
        if inner.contains([':', '{', '$']) {
            let why = "only `${key}` and `${oc.env:NAME,default}` are understood".to_owned();
            return Err(wrong(entry, expression, why));
        }
        let found = keys::find(inner.trim()).and_then(|key| self.entries.get_key_value(key.name));
        let Some((name, target)) = found else {
            return Err(wrong(entry, expression, "that key isn't in this recipe".to_owned()));
        };
        if trail.contains(name) {
            let why = format!("`{}` refers to itself in the end", target.spelling);
            return Err(wrong(entry, expression, why));
        }
        if trail.len() >= MAX_CHAIN {
            let why = format!("a chain of more than {MAX_CHAIN} keys");
            return Err(wrong(entry, expression, why));
        }
        trail.push(name);
        let value = self.node(&target.node, target, trail)?;
        trail.pop();
        self.spend(value.shown().len(), entry, expression)?;
        Ok(value)
    }

    fn environment(
        &self,
        expression: &str,
        arguments: &str,
        entry: &Entry,
    ) -> Result<Node, RecipeError> {
        let (name, default) = match arguments.split_once(',') {
            Some((name, default)) => (name.trim(), Some(unquoted(default.trim()))),
            None => (arguments.trim(), None),
        };
        let value = (self.variable)(name).or_else(|| default.map(str::to_owned));
        let why =
            || format!("the environment variable `{name}` isn't set, and no default is given");
        let value = value.ok_or_else(|| wrong(entry, expression, why()))?;
        Ok(Node::plain(entry.at.clone(), &value))
    }

    fn spend(&mut self, work: usize, entry: &Entry, expression: &str) -> Result<(), RecipeError> {
        self.work = self.work.saturating_add(work);
        if self.work <= MAX_WORK {
            return Ok(());
        }
        let why = "the recipe's interpolations produce too much text".to_owned();
        Err(wrong(entry, expression, why))
    }
}

fn unquoted(text: &str) -> &str {
    let strip = |quote| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    strip('"').or_else(|| strip('\'')).unwrap_or(text)
}

fn wrong(entry: &Entry, expression: &str, why: String) -> RecipeError {
    RecipeError::Interpolation {
        at: entry.at.clone(),
        key: entry.spelling.clone(),
        expression: expression.to_owned(),
        why,
    }
}
