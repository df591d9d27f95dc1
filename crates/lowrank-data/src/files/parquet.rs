//! Parquet files through the crate's record API, without arrow.

use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::Sink;
use crate::error::{DataError, Result};
use crate::images::data_url;

pub(super) fn read(path: &Path, sink: &mut Sink<'_>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| DataError::io(path, e))?;
    let reader = SerializedFileReader::new(file).map_err(|e| DataError::file(path, e))?;
    let rows = reader.get_row_iter(None).map_err(|e| DataError::file(path, e))?;
    for row in rows {
        if sink.is_full() {
            break;
        }
        let row = row.map_err(|e| DataError::file(path, e))?;
        match object(&row) {
            Ok(fields) => sink.push(None, fields),
            Err(message) => sink.refuse(None, message)?,
        }
    }
    Ok(())
}

fn object(row: &Row) -> Result<Map<String, Value>, String> {
    row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?))).collect()
}

/// What lies within a column. Of a picture, as Hugging Face's datasets write it (`bytes` and
/// `path`), the bytes come as a `data:` URL.
fn within(row: &Row) -> Result<Map<String, Value>, String> {
    let field = |(name, field): (&String, &Field)| match field {
        Field::Bytes(bytes) if name == "bytes" => Ok((name.clone(), data_url(bytes.data()).into())),
        _ => Ok((name.clone(), value(field)?)),
    };
    row.get_column_iter().map(field).collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::from(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(x) => number(f64::from(*x))?,
        Field::Float(x) => number(f64::from(*x))?,
        Field::Double(x) => number(*x)?,
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => Value::from(text),
            Err(_) => return Err("a column holds binary data that isn't text".to_owned()),
        },
        Field::Group(row) => Value::Object(within(row)?),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entry = |(key, field): &(Field, Field)| match value(key)? {
                Value::String(key) => Ok((key, value(field)?)),
                other => Ok((other.to_string(), value(field)?)),
            };
            Value::Object(map.entries().iter().map(entry).collect::<Result<_, String>>()?)
        }
        other => return Err(format!("a column holds a `{}`, which can't be data", kind(other))),
    })
}

fn number(x: f64) -> Result<Value, String> {
    let number = Number::from_f64(x).ok_or_else(|| format!("a column holds the number {x}"))?;
    Ok(Value::Number(number))
}

fn kind(field: &Field) -> &'static str {
    match field {
        Field::Decimal(_) => "decimal",
        Field::Date(_) => "date",
        Field::TimeMillis(_) | Field::TimeMicros(_) => "time",
        _ => "timestamp",
    }
}
