//! `rank_pattern` and `alpha_pattern`: values for modules whose path ends with a key.

use std::fmt;

use indexmap::IndexMap;

use super::error::{TargetError, TargetWarning};
use super::python_regex::PythonRegex;

/// The keys of one field as regular expressions, in the order in which they are tried.
pub(super) struct Patterns<'a, T> {
    field: &'static str,
    rows: Vec<(&'a str, PythonRegex, &'a T)>,
}

impl<'a, T: PartialEq + fmt::Display> Patterns<'a, T> {
    pub(super) fn new(
        field: &'static str,
        patterns: &'a IndexMap<String, T>,
    ) -> Result<Self, TargetError> {
        let mut rows = Vec::with_capacity(patterns.len());
        for (key, value) in patterns {
            let regex = PythonRegex::prefix(field, r"(.*\.)?(", key, ")$")?;
            rows.push((key.as_str(), regex, value));
        }
        Ok(Self { field, rows })
    }

    /// The value of the first key that matches.
    pub(super) fn find(&self, path: &str) -> Option<&'a T> {
        self.rows.iter().find(|(_, regex, _)| regex.is_match(path)).map(|(_, _, value)| *value)
    }

    /// Keys that hit none of `paths`, and a path whose value depends on the order of the keys.
    pub(super) fn warnings(&self, paths: &[&str]) -> Vec<TargetWarning> {
        let field = self.field;
        let mut keys: Vec<String> = self
            .rows
            .iter()
            .filter(|(_, regex, _)| !paths.iter().any(|path| regex.is_match(path)))
            .map(|(key, _, _)| (*key).to_owned())
            .collect();
        keys.sort();
        let mut warnings = Vec::new();
        if !keys.is_empty() {
            warnings.push(TargetWarning::PatternWithoutHits { field, keys });
        }
        warnings.extend(paths.iter().find_map(|path| self.order_warning(path)));
        warnings
    }

    fn order_warning(&self, path: &str) -> Option<TargetWarning> {
        let now = self.find(path)?;
        let hits = self.rows.iter().filter(|(_, regex, _)| regex.is_match(path));
        let (_, _, saved) = hits.min_by_key(|(key, _, _)| *key)?;
        (now != *saved).then(|| TargetWarning::PatternOrder {
            field: self.field,
            path: path.to_owned(),
            now: now.to_string(),
            saved: saved.to_string(),
        })
    }
}
