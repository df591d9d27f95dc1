//! Where the words of a row stand on their page.

use serde_json::Value;

use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::record::Record;

/// Left, upper, right and lower edge of a word, in thousandths of its page.
pub type WordBox = [u32; 4];

/// The last edge of a page.
pub(crate) const PAGE: u32 = 1000;
/// Names of the column, where the data set doesn't say.
const NAMES: [&str; 3] = ["boxes", "bboxes", "bbox"];

/// A box for each of so many words (in the column `of`), if the row has any.
pub(super) fn boxes(
    record: &Record,
    entry: &DatasetEntry,
    (of, words): (&str, usize),
) -> Result<Option<Vec<WordBox>>, RowProblem> {
    let named = entry.columns.get("boxes");
    let known = || NAMES.into_iter().find(|name| record.get(name).is_some());
    let Some(field) = named.or_else(known).filter(|name| record.get(name).is_some()) else {
        return Ok(None);
    };
    let list = record.require_list(field)?;
    if list.len() != words {
        return Err(RowProblem::Lengths {
            left: of.to_owned(),
            left_len: words,
            right: field.to_owned(),
            right_len: list.len(),
        });
    }
    let must_be = "[x0, y0, x1, y1], whole numbers from 0 to 1000 with x0 <= x1 and y0 <= y1";
    let one = |(i, value): (usize, &Value)| {
        word_box(value).ok_or_else(|| RowProblem::WrongType {
            field: format!("{field}[{i}]"),
            found: format!("`{value}`"),
            must_be,
        })
    };
    list.iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
}

fn word_box(value: &Value) -> Option<WordBox> {
    let edge = |edge: &Value| {
        edge.as_u64().and_then(|edge| u32::try_from(edge).ok()).filter(|edge| *edge <= PAGE)
    };
    let edges: Vec<u32> = value.as_array()?.iter().map(edge).collect::<Option<_>>()?;
    let [x0, y0, x1, y1] = edges.try_into().ok()?;
    (x0 <= x1 && y0 <= y1).then_some([x0, y0, x1, y1])
}

/// The words of a text that have a box each: what white space separates.
pub(super) fn words_in(text: &str) -> usize {
    text.split_whitespace().count()
}
