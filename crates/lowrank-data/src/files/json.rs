//! JSON arrays of objects, and JSON lines.

use std::path::Path;

use serde_json::{Deserializer, Value};

use super::{Sink, read_text};
use crate::error::{DataError, Result};

/// A `.json` file: one array of objects, or objects one after the other.
pub(super) fn read_json(path: &Path, sink: &mut Sink<'_>) -> Result<()> {
    let text = read_text(path)?;
    let mut cursor = Cursor { path, text: &text, at: 0, line: 1 };
    cursor.skip_space();
    let array = cursor.eat('[');
    cursor.skip_space();
    if array && cursor.eat(']') {
        return Ok(());
    }
    while !sink.is_full() && !cursor.is_at_end() {
        let line = cursor.line;
        let value = cursor.value()?;
        sink.push_value(Some(line), value)?;
        cursor.skip_space();
        if array {
            if cursor.eat(']') {
                cursor.skip_space();
                if !cursor.is_at_end() {
                    return Err(cursor.error("expected the end of the file after `]`"));
                }
                return Ok(());
            }
            if !cursor.eat(',') {
                return Err(cursor.error("expected `,` or `]` after a row"));
            }
            cursor.skip_space();
            if cursor.is_at_end() {
                return Err(cursor.error("the array isn't closed; is the file complete?"));
            }
        }
    }
    Ok(())
}

/// A `.jsonl` file: an object a line. A line that isn't one may be skipped.
pub(super) fn read_jsonl(path: &Path, sink: &mut Sink<'_>) -> Result<()> {
    let text = read_text(path)?;
    for (index, line) in text.lines().enumerate() {
        if sink.is_full() {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Value>(line) {
            Ok(value) => sink.push_value(Some(index + 1), value)?,
            Err(e) => sink.refuse(Some(index + 1), format!("not JSON: {e}"))?,
        }
    }
    Ok(())
}

struct Cursor<'a> {
    path: &'a Path,
    text: &'a str,
    at: usize,
    line: usize,
}

impl Cursor<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn is_at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    fn advance(&mut self, bytes: usize) {
        let passed = self.rest().get(..bytes).unwrap_or_default();
        self.line += passed.bytes().filter(|b| *b == b'\n').count();
        self.at += bytes;
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start().len());
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn value(&mut self) -> Result<Value> {
        let mut values = Deserializer::from_str(self.rest()).into_iter::<Value>();
        let first = values.next();
        let bytes = values.byte_offset();
        match first {
            Some(Ok(value)) => {
                self.advance(bytes);
                Ok(value)
            }
            Some(Err(e)) => {
                self.line += e.line().saturating_sub(1);
                Err(self.error(&format!("not JSON: {e}")))
            }
            None => Err(self.error("the file ends where a row should begin")),
        }
    }

    fn error(&self, message: &str) -> DataError {
        DataError::Syntax {
            path: self.path.to_owned(),
            line: self.line,
            message: message.to_owned(),
        }
    }
}
