//! The table as text: `lowrank help recipe`, and the docs page.

use super::{Key, Kind, SECTIONS, Section, Status};
use std::fmt::Write;

/// What `lowrank help recipe` prints: implemented keys with their defaults, then the names of the
/// others.
pub fn help_text() -> String {
    let mut text = String::new();
    for section in SECTIONS {
        let keys: Vec<&Key> = with_status(section, |status| *status == Status::Implemented);
        if !keys.is_empty() {
            push(&mut text, format_args!("{}:\n", section.title));
            keys.iter().for_each(|key| push(&mut text, format_args!("{}", entry(key))));
            text.push('\n');
        }
    }
    names(&mut text, "Accepted, without effect here", |s| matches!(s, Status::Ignored(_)));
    names(&mut text, "Not implemented in this release", |s| matches!(s, Status::NotYet(_)));
    text
}

/// The docs page: one table per section.
pub fn markdown() -> String {
    let mut page = "# Recipe keys\n".to_owned();
    for section in SECTIONS {
        push(&mut page, format_args!("\n## {}\n\n", section.title));
        page.push_str("key | value | default | what it does | here\n-|-|-|-|-\n");
        section.keys.iter().for_each(|key| push(&mut page, format_args!("{}\n", row(key))));
    }
    page
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing into a String can't fail.
    let _ = text.write_fmt(what);
}

fn with_status(section: &Section, wanted: impl Fn(&Status) -> bool) -> Vec<&'static Key> {
    section.keys.iter().filter(|key| wanted(&key.status)).collect()
}

fn entry(key: &Key) -> String {
    let spellings = std::iter::once(&key.name).chain(key.aliases).copied();
    let spellings = spellings.collect::<Vec<_>>().join(", ");
    let default = key.default.map_or(String::new(), |value| format!(" [default: {value}]"));
    format!("  {spellings}\n      {}{default}{}\n", key.doc, choices(key))
}

fn choices(key: &Key) -> String {
    match key.kind {
        Kind::OneOf { here, .. } if here.len() > 1 => format!(" [{}]", here.join(", ")),
        _ => String::new(),
    }
}

fn names(text: &mut String, title: &str, wanted: impl Fn(&Status) -> bool + Copy) {
    push(text, format_args!("{title}:\n"));
    let keys = SECTIONS.iter().flat_map(|section| with_status(section, wanted));
    let mut names: Vec<&str> = keys.map(|key| key.name).collect();
    names.sort_unstable();
    for line in wrapped(&names, 96) {
        push(text, format_args!("  {line}\n"));
    }
    text.push('\n');
}

fn wrapped(names: &[&str], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for name in names {
        match lines.last_mut() {
            Some(line) if line.len() + name.len() + 2 <= width => {
                line.push_str(", ");
                line.push_str(name);
            }
            last => {
                last.into_iter().for_each(|line| line.push(','));
                lines.push((*name).to_owned());
            }
        }
    }
    lines
}

fn row(key: &Key) -> String {
    let aliases: String = key.aliases.iter().map(|alias| format!(", `{alias}`")).collect();
    let default = key.default.map_or("null".to_owned(), |value| format!("`{value}`"));
    let here = match key.status {
        Status::Implemented => "yes".to_owned(),
        Status::Ignored(reason) => format!("ignored: {reason}"),
        Status::NotYet(None) => "not yet".to_owned(),
        Status::NotYet(Some(instead)) => format!("not yet: {instead}"),
    };
    let (name, value, doc) = (key.name, key.kind.describe(), key.doc);
    format!("`{name}`{aliases} | {value} | {default} | {doc} | {here}")
}
