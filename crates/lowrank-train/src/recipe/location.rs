//! Where something of a recipe was written: a file with its line, or the command line.

use std::fmt;
use std::sync::Arc;

/// A place that an error names: `recipe.yaml:4`, or `command line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    origin: Arc<str>,
    line: Option<usize>,
}

impl Location {
    /// The whole of `origin`, without a line.
    pub fn whole(origin: &str) -> Self {
        Self { origin: Arc::from(origin), line: None }
    }

    /// Line `line` (the first is 1) of the same origin.
    pub fn line(&self, line: usize) -> Self {
        Self { origin: Arc::clone(&self.origin), line: Some(line) }
    }

    /// The file's name as it was given, or `command line`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The line, counted from 1; the command line has none.
    pub fn line_number(&self) -> Option<usize> {
        self.line
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.origin),
            None => f.write_str(&self.origin),
        }
    }
}
