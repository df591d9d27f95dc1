//! Plain text: each line is a row with the column `text`, empty lines included, as
//! `datasets.load_dataset("text")` reads it.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Sink, read_text};
use crate::error::Result;

pub(super) fn read(path: &Path, sink: &mut Sink<'_>) -> Result<()> {
    let text = read_text(path)?;
    for (index, line) in text.lines().enumerate() {
        if sink.is_full() {
            break;
        }
        let fields = Map::from_iter([("text".to_owned(), Value::from(line))]);
        sink.push(Some(index + 1), fields);
    }
    Ok(())
}
