//! Separated values with a header line. Every cell stays a text; an empty cell is null.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Sink, read_text};
use crate::error::{DataError, Result};

pub(super) fn read(path: &Path, separator: u8, sink: &mut Sink<'_>) -> Result<()> {
    let text = read_text(path)?;
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(separator)
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| DataError::file(path, e))?.clone();
    for row in reader.records() {
        if sink.is_full() {
            break;
        }
        let row = row.map_err(|e| DataError::file(path, e))?;
        let line = row.position().and_then(|p| usize::try_from(p.line()).ok());
        if row.len() != header.len() {
            let message = format!("the row has {} cells, the header {}", row.len(), header.len());
            sink.refuse(line, message)?;
            continue;
        }
        let cell = |c: &str| if c.is_empty() { Value::Null } else { Value::from(c) };
        let fields: Map<_, _> =
            header.iter().zip(&row).map(|(name, c)| (name.to_owned(), cell(c))).collect();
        sink.push(line, fields);
    }
    Ok(())
}
