//! One row of a data file, before any format has looked at it.

use std::fmt;

use serde_json::{Map, Value};

use crate::error::{RowProblem, RowRef, describe, list};

/// A row: named values and the place it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// File, row and line.
    pub at: RowRef,
    /// The values by column name, in the order of the file.
    pub fields: Map<String, Value>,
}

impl Record {
    /// The value of a column; `null` counts as absent.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    /// The value of a column that must be there.
    /// # Errors
    /// An absent or null column; the message lists those the row has.
    pub fn require(&self, field: &str) -> Result<&Value, RowProblem> {
        self.get(field).ok_or_else(|| RowProblem::MissingField {
            field: field.to_owned(),
            found: list(self.fields.keys().map(String::as_str)),
        })
    }

    /// A column's text, if the column is there.
    /// # Errors
    /// A value that isn't a text.
    pub fn text(&self, field: &str) -> Result<Option<&str>, RowProblem> {
        self.get(field).map(|v| text(v, field)).transpose()
    }

    /// The text of a column that must be there.
    /// # Errors
    /// An absent column or another kind of value.
    pub fn require_text(&self, field: &str) -> Result<&str, RowProblem> {
        text(self.require(field)?, field)
    }

    /// The list in a column that must be there. A text that is a JSON list, as a CSV cell has to
    /// spell it, counts as one.
    /// # Errors
    /// An absent column or another kind of value.
    pub fn require_list(&self, field: &str) -> Result<Vec<Value>, RowProblem> {
        match self.require(field)? {
            Value::Array(list) => Ok(list.clone()),
            Value::String(cell) => serde_json::from_str(cell)
                .map_err(|_| wrong_type(field, &Value::from(cell.as_str()), "a list")),
            other => Err(wrong_type(field, other, "a list")),
        }
    }
}

/// `value` as a text, or the error that names `field`.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, RowProblem> {
    value.as_str().ok_or_else(|| wrong_type(field, value, "a text"))
}

/// The error for a value of the wrong kind.
pub(crate) fn wrong_type(
    field: impl fmt::Display,
    value: &Value,
    must_be: &'static str,
) -> RowProblem {
    RowProblem::WrongType { field: field.to_string(), found: describe(value), must_be }
}
