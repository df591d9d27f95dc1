//! Data files into [`Record`]s: json, jsonl, csv, tsv, parquet, txt; a file or a folder of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{DataError, Result, RowProblem, RowRef};
use crate::record::Record;

mod csv;
mod json;
mod parquet;
mod txt;

/// Rows of the files, and those that couldn't be parsed.
#[derive(Debug, Default)]
pub struct Rows {
    /// The rows in file order.
    pub records: Vec<Record>,
    /// Rows with a syntax error; empty unless asked to go on after one.
    pub bad: Vec<(RowRef, RowProblem)>,
}

/// How much to read, and what a row that can't be parsed means.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// Stop after this many rows.
    pub limit: Option<usize>,
    /// Collect rows with a syntax error in [`Rows::bad`] rather than fail.
    pub skip_bad_rows: bool,
}

/// Reads one file, or all files of a folder in the order of their names.
/// # Errors
/// An unreadable or malformed file, an unknown extension, or a folder of several kinds.
pub fn read(path: &Path, options: ReadOptions) -> Result<Rows> {
    let mut rows = Rows::default();
    for file in files_of(path)? {
        let mut sink = Sink { file: Arc::from(file.as_path()), row: 0, options, rows: &mut rows };
        if sink.is_full() {
            break;
        }
        match extension(&file).as_str() {
            "json" => json::read_json(&file, &mut sink)?,
            "jsonl" => json::read_jsonl(&file, &mut sink)?,
            "csv" => csv::read(&file, b',', &mut sink)?,
            "tsv" => csv::read(&file, b'\t', &mut sink)?,
            "parquet" => parquet::read(&file, &mut sink)?,
            "txt" => txt::read(&file, &mut sink)?,
            other => return Err(unknown_extension(&file, other)),
        }
    }
    Ok(rows)
}

/// Takes rows from a reader; knows when there are enough.
struct Sink<'a> {
    file: Arc<Path>,
    row: usize,
    options: ReadOptions,
    rows: &'a mut Rows,
}

impl Sink<'_> {
    fn is_full(&self) -> bool {
        self.options.limit.is_some_and(|limit| self.rows.records.len() >= limit)
    }

    fn next_row(&mut self, line: Option<usize>) -> RowRef {
        let at = RowRef { file: Arc::clone(&self.file), row: self.row, line };
        self.row += 1;
        at
    }

    fn push(&mut self, line: Option<usize>, fields: Map<String, Value>) {
        let at = self.next_row(line);
        self.rows.records.push(Record { at, fields });
    }

    /// Takes a value that should be an object.
    fn push_value(&mut self, line: Option<usize>, value: Value) -> Result<()> {
        match value {
            Value::Object(fields) => self.push(line, fields),
            other => {
                let found = crate::error::describe(&other);
                self.refuse(line, format!("the row is {found}; it must be an object"))?;
            }
        }
        Ok(())
    }

    /// A row that can't be parsed: an error, or counted.
    fn refuse(&mut self, line: Option<usize>, message: String) -> Result<()> {
        let at = self.next_row(line);
        let problem = RowProblem::Syntax { message };
        if !self.options.skip_bad_rows {
            return Err(problem.at(&at));
        }
        self.rows.bad.push((at, problem));
        Ok(())
    }
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| DataError::io(path, e))? {
        let file = entry.map_err(|e| DataError::io(path, e))?.path();
        let hidden = file.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
        if file.is_file() && !hidden {
            files.push(file);
        }
    }
    files.sort();
    let first = files.first().map(|f| extension(f));
    let Some(first) = first else {
        return Err(DataError::file(path, "the folder has no files"));
    };
    if let Some(other) = files.iter().find(|f| extension(f) != first) {
        let message =
            format!("the folder mixes `.{first}` and `.{}` files; keep one kind", extension(other));
        return Err(DataError::file(path, message));
    }
    Ok(files)
}

fn extension(file: &Path) -> String {
    file.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

fn unknown_extension(file: &Path, extension: &str) -> DataError {
    let message =
        format!("can't read `.{extension}` files; use .json, .jsonl, .csv, .tsv, .parquet or .txt");
    DataError::file(file, message)
}

/// The file as text, without a byte-order mark; the error names the line that isn't UTF-8.
fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.as_bytes().get(..e.utf8_error().valid_up_to()).unwrap_or_default();
        DataError::Syntax {
            path: path.to_owned(),
            line: 1 + valid.iter().filter(|b| **b == b'\n').count(),
            message: "the text isn't UTF-8".to_owned(),
        }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}
