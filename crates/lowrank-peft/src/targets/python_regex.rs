//! Python's `re` on the `regex` crate, as far as patterns for module names go.
//!
//! Both have the same syntax for nearly everything. What differs is rewritten (braces that are no
//! quantifier, `[` and doubled signs inside a class, `\Z`) or refused (look-around,
//! back-references, possessive quantifiers), never silently matched in another way.

use regex::Regex;

use super::error::TargetError;

/// A compiled pattern that is matched from the start of a name.
#[derive(Debug)]
pub(super) struct PythonRegex(Regex);

impl PythonRegex {
    /// Python's `re.fullmatch(pattern, name)`. `field` names the pattern's origin in errors.
    pub(super) fn full(field: &'static str, pattern: &str) -> Result<Self, TargetError> {
        compile(field, pattern, true, |body| format!(r"\A(?:{body})\z"))
    }

    /// Python's `re.match(before + pattern + after, name)`, `before` and `after` being our own.
    pub(super) fn prefix(
        field: &'static str,
        before: &str,
        pattern: &str,
        after: &str,
    ) -> Result<Self, TargetError> {
        compile(field, pattern, before.is_empty(), |body| format!(r"\A(?:{before}{body}{after})"))
    }

    pub(super) fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// The outer `Option` is whether it matches, the inner one whether the group took part.
    pub(super) fn group<'a>(&self, name: &'a str, group: &str) -> Option<Option<&'a str>> {
        let captures = self.0.captures(name)?;
        Some(captures.name(group).map(|found| found.as_str()))
    }
}

fn compile(
    field: &'static str,
    pattern: &str,
    at_start: bool,
    complete: impl Fn(&str) -> String,
) -> Result<PythonRegex, TargetError> {
    let fail = |why: String| TargetError::Regex { field, pattern: pattern.to_owned(), why };
    let body = translate(pattern, at_start).map_err(|why| fail(why.to_owned()))?;
    // Compiled alone first: an unbalanced parenthesis must not pair up with one of ours.
    Regex::new(&body).map_err(|error| fail(explain(&error)))?;
    Regex::new(&complete(&body)).map(PythonRegex).map_err(|error| fail(explain(&error)))
}

/// The reason in one line; the crate's own message draws the pattern over several.
fn explain(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// `pattern` in the `regex` crate's syntax. `at_start` says whether nothing of ours stands before
/// it: flags like `(?i)` are for the start of the whole expression.
fn translate(pattern: &str, at_start: bool) -> Result<String, &'static str> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len());
    let mut at = 0;
    let (mut quantified, mut opened) = (false, false);
    while let Some(&c) = chars.get(at) {
        let rest = chars.get(at + 1..).unwrap_or_default();
        let was_quantified = std::mem::take(&mut quantified);
        let was_opened = std::mem::replace(&mut opened, c == '(');
        match c {
            '\\' => at += escape(&mut out, rest),
            '[' => at += class(&mut out, rest),
            '(' if has_flags(rest) && !(at_start && at == 0) => {
                return Err("flags like `(?i)` must stand at the start of the whole expression");
            }
            '+' if was_quantified => return Err("possessive quantifiers aren't supported"),
            '*' | '+' | '?' => {
                // After a quantifier `?` makes it lazy, after `(` it begins a group's flags.
                quantified = !was_quantified && !was_opened;
                out.push(c);
            }
            '{' => match quantifier(rest) {
                Some((text, length)) => {
                    out.push_str(&text);
                    at += length;
                    quantified = true;
                }
                None => out.push_str(r"\{"),
            },
            '}' => out.push_str(r"\}"),
            _ => out.push(c),
        }
        at += 1;
    }
    Ok(out)
}

/// Whether `rest`, what follows a `(`, is flags for the rest of the expression: `?i)`.
fn has_flags(rest: &[char]) -> bool {
    let ['?', flags @ ..] = rest else { return false };
    let end = flags.iter().take_while(|c| c.is_ascii_alphabetic()).count();
    end > 0 && flags.get(end) == Some(&')')
}

/// An escape, without the backslash in `rest`; returns how many characters of it were used.
fn escape(out: &mut String, rest: &[char]) -> usize {
    match rest.first() {
        None => out.push('\\'),
        Some('Z') => out.push_str(r"\z"),
        // In the `regex` crate these are the start and end of a word.
        Some(&c @ ('<' | '>')) => out.push(c),
        Some(&c) => {
            out.push('\\');
            out.push(c);
        }
    }
    rest.len().min(1)
}

/// A character class, its `[` already read; returns how many characters of `rest` were used.
fn class(out: &mut String, rest: &[char]) -> usize {
    out.push('[');
    let mut at = 0;
    if rest.first() == Some(&'^') {
        out.push('^');
        at += 1;
    }
    if rest.get(at) == Some(&']') {
        out.push_str(r"\]");
        at += 1;
    }
    while let Some(&c) = rest.get(at) {
        at += 1;
        match c {
            ']' => {
                out.push(c);
                return at;
            }
            '\\' => at += escape(out, rest.get(at..).unwrap_or_default()),
            // Nested classes and set operations exist only in the `regex` crate.
            '[' | '&' | '~' | '-' => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
        // After an item `-` makes a range, unless the class ends there.
        if rest.get(at) == Some(&'-') && rest.get(at + 1).is_some_and(|next| *next != ']') {
            out.push('-');
            at += 1;
        }
    }
    at
}

/// The quantifier whose `{` was just read: its text and its length in `rest`. Python takes braces
/// that aren't one literally.
fn quantifier(rest: &[char]) -> Option<(String, usize)> {
    let end = rest.iter().position(|c| *c == '}')?;
    let inner: String = rest.get(..end)?.iter().collect();
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let text = match inner.split_once(',') {
        None if !inner.is_empty() && digits(&inner) => format!("{{{inner}}}"),
        Some((low, high)) if digits(low) && digits(high) => {
            format!("{{{},{high}}}", if low.is_empty() { "0" } else { low })
        }
        _ => return None,
    };
    Some((text, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_pattern_panics(pattern in r"[a-z()\[\]{}?*+|^$\\\\.,&~0-9-]{0,24}") {
            let _ = PythonRegex::full("target_modules", &pattern);
            let _ = PythonRegex::prefix("rank_pattern", r"(.*\.)?(", &pattern, ")$");
        }
    }

    /// Whether Python's `re.fullmatch(pattern, text)` finds a match, by CPython 3.11.
    #[test]
    fn full_matches_as_in_python() {
        for (pattern, text, expected) in [
            (r"q|q_proj", "q_proj", true),
            (r"a{,2}", "aa", true),
            (r"a{,2}", "aaa", false),
            (r"a{x}", "a{x}", true),
            (r"a{2}", "aa", true),
            (r"[[]a", "[a", true),
            (r"[]a]+", "a]", true),
            (r"[^]]", "]", false),
            (r"[a&&b]+", "&", true),
            (r"[+--]+", ",", true),
            (r"[--a]", "A", true),
            (r"[a-]", "-", true),
            (r"[^-a-c]", "b", false),
            (r"[\w-]+", "a-b", true),
            (r"(a|b)\Z", "b", true),
            (r"\<a\>", "<a>", true),
            (r"a+?b*?", "aab", true),
            (r".*\.(q|v)_proj", "x.q_proj", true),
            (r".*\.(q|v)_proj", "q_proj", false),
            (r"(?i)Q_PROJ", "q_proj", true),
        ] {
            let regex = PythonRegex::full("target_modules", pattern).unwrap();
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_would_match_otherwise_is_refused() {
        for (pattern, reason) in [
            (r"(?!a)b", "look-around"),
            (r"(a)\1", "backreferences"),
            (r"a*+", "possessive"),
            (r"a)(b", "unopened group"),
            (r"a(?i)b", "flags"),
            (r"*a", "repetition operator missing expression"),
        ] {
            let error = PythonRegex::full("target_modules", pattern).unwrap_err().to_string();
            assert!(error.contains(reason), "{pattern}: {error}");
        }
    }
}
