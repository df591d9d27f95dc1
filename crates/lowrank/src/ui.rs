//! The one place that writes to the terminal: results to standard output, everything else to
//! standard error.
//!
//! A result that can't be written is an error of its writer (a closed pipe ends the program
//! quietly, see `main.rs`); a message that can't be written is lost.

use std::{
    borrow::Cow,
    fmt,
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _},
};

use owo_colors::OwoColorize as _;

/// Where a command's words go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ui;

impl Ui {
    /// A terminal, or what stands for one.
    pub(crate) fn new() -> Self {
        Self
    }

    /// A line of the result, on standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn result(self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// A piece of the result that should be seen at once.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn stream(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(self.for_output(text).as_bytes())?;
        out.flush()
    }

    /// Standard output for a result of many lines, which the caller flushes.
    pub(crate) fn output(self) -> BufWriter<StdoutLock<'static>> {
        BufWriter::new(io::stdout().lock())
    }

    /// A line about what goes on, on standard error.
    pub(crate) fn status(self, text: impl fmt::Display) {
        let mut err = io::stderr().lock();
        let text = text.to_string();
        let text = if err.is_terminal() { printable(&text) } else { text.as_str().into() };
        // Nobody can be told that standard error is closed.
        let _ = writeln!(err, "{text}");
    }

    /// Something that deserves attention.
    pub(crate) fn warning(self, text: impl fmt::Display) {
        let mut err = io::stderr().lock();
        let terminal = err.is_terminal();
        let label = match wants_colour(terminal) {
            true => "warning:".yellow().bold().to_string(),
            false => "warning:".to_owned(),
        };
        let text = text.to_string();
        let text = if terminal { printable(&text) } else { text.as_str().into() };
        let _ = writeln!(err, "{label} {text}");
    }

    /// Asks for a line of input, where somebody sits before it.
    pub(crate) fn prompt(self, text: &str) {
        if io::stdin().is_terminal() {
            let mut err = io::stderr().lock();
            let _ = write!(err, "{text}").and_then(|()| err.flush());
        }
    }

    /// Whether results may be coloured.
    pub(crate) fn colours(self) -> bool {
        wants_colour(io::stdout().is_terminal())
    }

    /// Text of a model or a data set as standard output may have it: unchanged in a file or pipe,
    /// without anything that a terminal would obey on a terminal.
    pub(crate) fn for_output(self, text: &str) -> Cow<'_, str> {
        if io::stdout().is_terminal() { printable(text) } else { text.into() }
    }
}

/// <https://no-color.org>: colours only on a terminal, and not if `NO_COLOR` is set.
fn wants_colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The text without control characters, line breaks and tabs excepted. Without its escape
/// character the rest of an escape sequence is plain text.
fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(obeyed) {
        true => text.chars().filter(|c| !obeyed(*c)).collect::<String>().into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_do_not_reach_a_terminal() {
        assert_eq!(printable("a\u{1b}[31mred\u{9b}0m\r\u{7}\u{8}b\n\tc"), "a[31mred0mb\n\tc");
        assert!(matches!(printable("plain\nüñ"), Cow::Borrowed(_)));
    }
}
