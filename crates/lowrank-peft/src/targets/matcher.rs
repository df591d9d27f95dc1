//! Does a module's path match? PEFT's `check_target_module_exists`, with everything that depends
//! on the configuration alone prepared once.

use std::collections::BTreeSet;

use super::error::TargetError;
use super::python_regex::PythonRegex;
use crate::lora_config::{ExcludeModules, LoraConfig, OneOrMany, TargetModules};

/// The answer for one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Excluded,
    Matched,
    Unmatched,
}

/// A configuration's rules about paths.
#[derive(Debug)]
pub(super) struct Matcher {
    exclude: Option<Rule>,
    saved: Vec<PythonRegex>,
    targets: Rule,
    layers: Option<Layers>,
}

impl Matcher {
    /// The rules of `config`, whose targets are resolved.
    pub(super) fn new(config: &LoraConfig) -> Result<Self, TargetError> {
        let targets = match &config.target_modules {
            TargetModules::Pattern(pattern) => Rule::pattern("target_modules", pattern)?,
            TargetModules::List(names) => Rule::names(names),
            TargetModules::Default | TargetModules::AllLinear => Rule::names(&[]),
        };
        Ok(Self {
            exclude: exclusion(config)?,
            saved: saved_patterns(config)?,
            targets,
            layers: Layers::new(config)?,
        })
    }

    pub(super) fn check(&self, path: &str) -> Verdict {
        if self.excludes(path) || self.saved.iter().any(|saved| saved.is_match(path)) {
            return Verdict::Excluded;
        }
        let matched = match self.targets.hit(path) {
            None => false,
            // A whole path or a regular expression says which layer it means.
            Some(Hit::Whole) => true,
            Some(Hit::Ending) => self.layers.as_ref().is_none_or(|layers| layers.has(path)),
        };
        if matched { Verdict::Matched } else { Verdict::Unmatched }
    }

    /// Whether `exclude_modules` hits the path.
    pub(super) fn excludes(&self, path: &str) -> bool {
        self.exclude.as_ref().is_some_and(|rule| rule.hit(path).is_some())
    }
}

fn exclusion(config: &LoraConfig) -> Result<Option<Rule>, TargetError> {
    match &config.exclude_modules {
        None => Ok(None),
        Some(ExcludeModules::List(names)) => Ok(Some(Rule::names(names))),
        // In Python an empty string is no pattern.
        Some(ExcludeModules::Pattern(pattern)) if pattern.is_empty() => Ok(None),
        Some(ExcludeModules::Pattern(pattern)) => {
            Rule::pattern("exclude_modules", pattern).map(Some)
        }
    }
}

/// A module to save, and everything in it, never gets an adapter. PEFT puts the entries into the
/// pattern as they are, so they may be regular expressions here (not where they are wrapped).
fn saved_patterns(config: &LoraConfig) -> Result<Vec<PythonRegex>, TargetError> {
    let entries = config.modules_to_save.iter().flatten();
    entries
        .map(|entry| PythonRegex::prefix("modules_to_save", r"(^|.*\.)", entry, r"($|\..*)"))
        .collect()
}

/// A regular expression for whole paths, or names for their endings.
#[derive(Debug)]
enum Rule {
    Pattern(PythonRegex),
    Names(BTreeSet<String>),
}

/// How a path was hit.
enum Hit {
    Whole,
    Ending,
}

impl Rule {
    fn names(names: &[String]) -> Self {
        Self::Names(names.iter().cloned().collect())
    }

    fn pattern(field: &'static str, pattern: &str) -> Result<Self, TargetError> {
        PythonRegex::full(field, pattern).map(Self::Pattern)
    }

    fn hit(&self, path: &str) -> Option<Hit> {
        match self {
            Self::Pattern(regex) => regex.is_match(path).then_some(Hit::Whole),
            Self::Names(names) if names.contains(path) => Some(Hit::Whole),
            Self::Names(names) => {
                suffixes_below(path).any(|suffix| names.contains(suffix)).then_some(Hit::Ending)
            }
        }
    }
}

/// The path itself and what follows each of its dots.
pub(super) fn suffixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(suffixes_below(path))
}

/// What follows each dot of the path.
pub(super) fn suffixes_below(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').filter_map(|(dot, _)| path.get(dot + 1..))
}

/// `layers_to_transform`: the layers that are kept, and how to find a path's layer.
#[derive(Debug)]
struct Layers {
    indices: Vec<i64>,
    patterns: Vec<PythonRegex>,
}

impl Layers {
    /// `None` if every layer is kept.
    fn new(config: &LoraConfig) -> Result<Option<Self>, TargetError> {
        let indices = match &config.layers_to_transform {
            None => return Ok(None),
            Some(OneOrMany::Many(indices)) if indices.is_empty() => return Ok(None),
            Some(indices) => indices.as_slice().to_vec(),
        };
        let named: Vec<&String> = match &config.layers_pattern {
            None => Vec::new(),
            Some(OneOrMany::One(pattern)) if pattern.is_empty() => Vec::new(),
            Some(patterns) => patterns.as_slice().iter().collect(),
        };
        let index = r"\.(?P<idx>\d+)\.";
        let patterns = if named.is_empty() {
            // The first number in the path: the layer, not an expert inside it.
            vec![PythonRegex::prefix("layers_pattern", "", r".*?\.[^.]*\.(?P<idx>\d+)\.", "")?]
        } else {
            let compile =
                |name: &String| PythonRegex::prefix("layers_pattern", r"(?:^|.*?\.)", name, index);
            named.into_iter().map(compile).collect::<Result<_, _>>()?
        };
        Ok(Some(Self { indices, patterns }))
    }

    fn has(&self, path: &str) -> bool {
        // The first pattern that matches decides, even if its alternative has no index.
        let index = self.patterns.iter().find_map(|pattern| pattern.group(path, "idx")).flatten();
        index
            .and_then(|digits| digits.parse().ok())
            .is_some_and(|index| self.indices.contains(&index))
    }
}
