//! Jinja as transformers sets it up: trimmed blocks, `raise_exception`, `strftime_now`, its own
//! `tojson`, Python's string methods and Python's spelling of values.

use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};
use regex::Regex;

use crate::date::DateTime;
use crate::error::{DataError, Result, RowProblem};
use crate::python_json::Writer;

/// Work that a rendering may do: plenty for thousands of messages, seconds at most.
const FUEL: u64 = 5_000_000;
/// Bytes that a rendering may have.
const MOST_BYTES: usize = 64 << 20;
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug, Clone)]
pub(super) struct Program {
    environment: Arc<Environment<'static>>,
}

impl Program {
    /// Compiles a template of the model in `folder`.
    /// # Errors
    /// A syntax error, with its line in the template.
    pub(super) fn new(folder: &Path, source: &str, now: Option<DateTime>) -> Result<Self> {
        let wrong =
            |message: String| DataError::ChatTemplate { folder: folder.to_owned(), message };
        let source = without_generation_tags(source).map_err(wrong)?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| wrong(e.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment
            .set_formatter(|out, _, value| out.write_str(&display(value)?).map_err(Error::from));
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| {
            Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| strftime(now, &format));
        environment.add_template_owned(NAME, source).map_err(|e| wrong(format!("{e:#}")))?;
        Ok(Self { environment: Arc::new(environment) })
    }

    /// Renders the template.
    /// # Errors
    /// What the template refuses, or a rendering beyond the limits.
    pub(super) fn render(&self, context: &serde_json::Value) -> Result<String, RowProblem> {
        let refused = |e: Error| RowProblem::Render { message: format!("{e:#}") };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let text = template.render(Value::from(Serde(context))).map_err(refused)?;
        if text.len() > MOST_BYTES {
            let message = format!("the text has {} bytes, more than {MOST_BYTES}", text.len());
            return Err(RowProblem::Render { message });
        }
        Ok(text)
    }
}

/// `{% generation %}` marks the model's part for transformers' own masks and writes nothing. It is
/// replaced by a condition that always holds, which trims white space in the same way.
fn without_generation_tags(source: &str) -> Result<String, String> {
    let open = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").map_err(|e| e.to_string())?;
    let close =
        Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").map_err(|e| e.to_string())?;
    let opened = open.replace_all(source, "{%$1 if true $2%}");
    Ok(close.replace_all(&opened, "{%$1 endif $2%}").into_owned())
}

fn strftime(now: Option<DateTime>, format: &str) -> Result<String, Error> {
    let fail = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    let now = now.ok_or_else(|| fail("asks for the date, and none was given".to_owned()))?;
    now.strftime(format).map_err(fail)
}

/// transformers' `tojson`: plain `json.dumps`, nothing escaped for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<usize> = options.get("indent")?;
    let default = if indent.is_some() { (",", ": ") } else { (", ", ": ") };
    let separators = match separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        _ => default,
    };
    let writer = Writer {
        indent,
        separators,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    writer.write(&json(value)?, 0, &mut out);
    Ok(Value::from(out))
}

fn json(value: &Value) -> Result<serde_json::Value, Error> {
    serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// A value as Python's `str()` writes it.
fn display(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let mut out = String::new();
            repr(&json(value)?, &mut out);
            out
        }
        _ => value.to_string(),
    })
}

/// Python's `repr()` of JSON data.
fn repr(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match value {
        Null => out.push_str("None"),
        Bool(true) => out.push_str("True"),
        Bool(false) => out.push_str("False"),
        Number(_) => out.push_str(&crate::python_json::dumps(value)),
        String(text) => quote(text, out),
        Array(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(item, out);
            }
            out.push(']');
        }
        Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                quote(key, out);
                out.push_str(": ");
                repr(item, out);
            }
            out.push('}');
        }
    }
}

fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(mark);
}
