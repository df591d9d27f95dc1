//! The files that belong to a row: pictures, by their paths. Reference: LLaMA-Factory 0.9.5
//! `data/converter.py`, `_find_medias`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::record::{Record, text, wrong_type};

/// The row's pictures. Films and sound are refused: nothing here would train on them.
pub(super) fn images(record: &Record, entry: &DatasetEntry) -> Result<Vec<PathBuf>, RowProblem> {
    for role in ["videos", "audios"] {
        let Some(field) = entry.columns.get(role) else { continue };
        if !listed(record, field)?.is_empty() {
            return Err(RowProblem::Media { field: field.to_owned() });
        }
    }
    let Some(field) = entry.columns.get("images") else { return Ok(Vec::new()) };
    let find = |path: &String| find(path, field, entry);
    listed(record, field)?.iter().map(find).collect()
}

/// Paths in a column: a list of them, or a single one.
fn listed(record: &Record, field: &str) -> Result<Vec<String>, RowProblem> {
    let paths = match record.get(field) {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) if one.is_empty() => return Ok(Vec::new()),
        Some(Value::String(one)) if !one.starts_with('[') => return Ok(vec![one.clone()]),
        Some(Value::String(_) | Value::Array(_)) => record.require_list(field)?,
        Some(other) => return Err(wrong_type(field, other, "a list of paths")),
    };
    let path = |(i, path): (usize, &Value)| text(path, &format!("{field}[{i}]")).map(str::to_owned);
    paths.iter().enumerate().map(path).collect()
}

/// A file in the first folder that has it, or where the path itself leads.
fn find(path: &str, field: &str, entry: &DatasetEntry) -> Result<PathBuf, RowProblem> {
    let folders = entry.media_dirs.iter().map(PathBuf::as_path).chain([Path::new("")]);
    let found = folders.map(|folder| folder.join(path)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let folders = crate::error::list(entry.media_dirs.iter().filter_map(|f| f.to_str()));
        let message = format!("there is no such file in {folders} (`media_dir`)");
        RowProblem::Picture { field: field.to_owned(), path: path.into(), message }
    })
}
