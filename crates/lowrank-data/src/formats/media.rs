//! The pictures that belong to a row: files by their paths, or bytes in the row itself. References:
//! LLaMA-Factory 0.9.5 `data/converter.py`, `_find_medias`; `Image` of Hugging Face's datasets.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::images::PictureSource;
use crate::record::{Record, wrong_type};

/// What a picture may be.
const PICTURE: &str = "a text (a path or a `data:` URL) or an object with `bytes` or `path`";

/// The row's pictures: those that parts of its messages bring (`None` for a part that leaves that to
/// the column), then the rest of the column. Films and sound are refused: nothing here would train
/// on them.
pub(super) fn images(
    record: &Record,
    entry: &DatasetEntry,
    of_parts: Vec<Option<PictureSource>>,
) -> Result<Vec<PictureSource>, RowProblem> {
    for role in ["videos", "audios"] {
        let Some(field) = entry.columns.get(role) else { continue };
        if !listed(record, field)?.is_empty() {
            return Err(RowProblem::Media { field: field.to_owned() });
        }
    }
    let field = entry.columns.get("images");
    let column = field.map(|field| listed(record, field)).transpose()?.unwrap_or_default();
    let places = column.iter().map(|(place, value)| picture(value, place, entry));
    let mut column = places.collect::<Result<Vec<_>, _>>()?.into_iter();
    let none = || {
        let field = field.unwrap_or("images");
        let message = format!("a message shows a picture that neither it nor `{field}` has");
        RowProblem::Other { message }
    };
    let shown = of_parts.into_iter().map(|own| own.or_else(|| column.next()).ok_or_else(none));
    let mut pictures = shown.collect::<Result<Vec<_>, _>>()?;
    pictures.extend(column);
    Ok(pictures)
}

/// The entries of a column with their places: a list of them, or a single one.
fn listed(record: &Record, field: &str) -> Result<Vec<(String, Value)>, RowProblem> {
    let list = match record.get(field) {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) if one.is_empty() => return Ok(Vec::new()),
        Some(one @ Value::String(text)) if !text.starts_with('[') => vec![one.clone()],
        Some(one @ Value::Object(_)) => vec![one.clone()],
        Some(Value::String(_) | Value::Array(_)) => record.require_list(field)?,
        Some(other) => return Err(wrong_type(field, other, "a list of pictures")),
    };
    let place = |(i, value)| (format!("{field}[{i}]"), value);
    Ok(list.into_iter().enumerate().map(place).collect())
}

/// A picture as datasets write it.
pub(super) fn picture(
    value: &Value,
    place: &str,
    entry: &DatasetEntry,
) -> Result<PictureSource, RowProblem> {
    match value {
        Value::String(text) => from_text(text, place, entry),
        Value::Object(image) => match own(image, &["bytes", "path"]) {
            Some(Value::String(text)) => from_text(text, place, entry),
            _ => Err(wrong_type(place, value, PICTURE)),
        },
        other => Err(wrong_type(place, other, PICTURE)),
    }
}

/// The first of some fields that isn't null.
pub(super) fn own<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().find_map(|key| object.get(*key).filter(|value| !value.is_null()))
}

fn from_text(text: &str, place: &str, entry: &DatasetEntry) -> Result<PictureSource, RowProblem> {
    let problem = |picture: &str, message: String| {
        Err(RowProblem::Picture { field: place.to_owned(), picture: picture.to_owned(), message })
    };
    if text.starts_with("data:") {
        let start: String = text.chars().take(40).collect();
        let message = "the URL doesn't hold a picture in base64".to_owned();
        return PictureSource::from_data_url(text).map_or_else(|| problem(&start, message), Ok);
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let message = "lowrank opens no network connection; download it and write its path";
        return problem(text, message.to_owned());
    }
    if let Some(file) = find(text.strip_prefix("file://").unwrap_or(text), entry) {
        return Ok(PictureSource::File(file));
    }
    let folders = crate::error::list(entry.media_dirs.iter().filter_map(|f| f.to_str()));
    problem(text, format!("there is no such file in {folders} (`media_dir`)"))
}

/// A file in the first folder that has it, or where the path itself leads.
fn find(path: &str, entry: &DatasetEntry) -> Option<PathBuf> {
    let folders = entry.media_dirs.iter().map(PathBuf::as_path).chain([Path::new("")]);
    folders.map(|folder| folder.join(path)).find(|file| file.is_file())
}
