//! JSON text exactly as Python's `json.dumps(ensure_ascii=False)` writes it, which is what
//! templates put into prompts: `", "` and `": "` between parts, Python's spelling of floats.

use serde_json::{Number, Value};

/// `json.dumps(value, ensure_ascii=False)`.
pub(crate) fn dumps(value: &Value) -> String {
    let mut out = String::new();
    Writer { indent: None, separators: (", ", ": "), sort_keys: false, ensure_ascii: false }
        .write(value, 0, &mut out);
    out
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(crate) fn dumps_indented(value: &Value, indent: usize) -> String {
    let mut out = String::new();
    let writer = Writer {
        indent: Some(indent),
        separators: (",", ": "),
        sort_keys: false,
        ensure_ascii: false,
    };
    writer.write(value, 0, &mut out);
    out
}

/// How to write: Python's `indent`, `separators` (between items, after a key), `sort_keys` and
/// `ensure_ascii`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) indent: Option<usize>,
    pub(crate) separators: (&'a str, &'a str),
    pub(crate) sort_keys: bool,
    pub(crate) ensure_ascii: bool,
}

impl Writer<'_> {
    pub(crate) fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => out.push_str(&number(n)),
            Value::String(text) => self.quote(text, out),
            Value::Array(list) => {
                self.items(list.iter(), ('[', ']'), depth, out, |item, depth, out| {
                    self.write(item, depth, out);
                });
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.items(
                    entries.into_iter(),
                    ('{', '}'),
                    depth,
                    out,
                    |(key, item), depth, out| {
                        self.quote(key, out);
                        out.push_str(self.separators.1);
                        self.write(item, depth, out);
                    },
                );
            }
        }
    }

    fn items<T>(
        &self,
        items: impl ExactSizeIterator<Item = T>,
        brackets: (char, char),
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, usize, &mut String),
    ) {
        out.push(brackets.0);
        let empty = items.len() == 0;
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(self.separators.0);
            }
            self.new_line(depth + 1, out);
            write(item, depth + 1, out);
        }
        if !empty {
            self.new_line(depth, out);
        }
        out.push(brackets.1);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || self.ensure_ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Integers as they are; floats as Python's `repr`, which turns to exponents below 1e-4 and from
/// 1e16 on and writes at least two digits of them.
fn number(n: &Number) -> String {
    let Some(x) = n.as_f64().filter(|_| n.is_f64()) else { return n.to_string() };
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Left: input; right: what CPython 3.11 `json.dumps(json.loads(..), ensure_ascii=False)` says.
    const PYTHON: [(&str, &str); 8] = [
        (r#"{"a":[1,2.0,-0.5],"b":{}}"#, r#"{"a": [1, 2.0, -0.5], "b": {}}"#),
        ("1e16", "1e+16"),
        ("1e-5", "1e-05"),
        ("123456789012345.6", "123456789012345.6"),
        ("0.0001", "0.0001"),
        ("1.5e300", "1.5e+300"),
        (r#""é \"\\ \u0001\u007f\u2028\n""#, "\"é \\\"\\\\ \\u0001\u{7f}\u{2028}\\n\""),
        ("[[],[null,true]]", "[[], [null, true]]"),
    ];

    #[test]
    fn writes_what_python_writes() {
        for (given, expected) in PYTHON {
            let value: Value = serde_json::from_str(given).unwrap();
            assert_eq!(dumps(&value), expected);
        }
    }

    #[test]
    fn indents_as_python_does() {
        let value: Value = serde_json::from_str(r#"{"a":[1,{"b":[]}]}"#).unwrap();
        let python =
            "{\n    \"a\": [\n        1,\n        {\n            \"b\": []\n        }\n    ]\n}";
        assert_eq!(dumps_indented(&value, 4), python);
    }
}
