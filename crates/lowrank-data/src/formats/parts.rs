//! Messages whose content is a list of parts, as OpenAI's API, TRL and transformers' chat templates
//! have it: texts, and pictures among them. As in LLaMA-Factory's own server (0.9.5 `api/chat.py`)
//! and in chat templates, nothing stands between texts, and `<image>` where a picture does.

use serde_json::Value;

use super::media::{own, picture};
use super::messages::part;
use crate::dataset_info::DatasetEntry;
use crate::error::RowProblem;
use crate::images::PictureSource;
use crate::record::wrong_type;

/// Marks a picture in a text, as LLaMA-Factory has it.
pub(crate) const PLACEHOLDER: &str = "<image>";

/// Reads lists of parts and keeps the pictures in them.
pub(super) struct PartReader<'a> {
    entry: &'a DatasetEntry,
    /// The key of a message's content.
    key: &'a str,
    /// One for each part that shows a picture; `None` where the row's column has it.
    pub(super) pictures: Vec<Option<PictureSource>>,
}

impl<'a> PartReader<'a> {
    pub(super) fn new(entry: &'a DatasetEntry, key: &'a str) -> Self {
        Self { entry, key, pictures: Vec::new() }
    }

    /// Messages with texts for contents.
    pub(super) fn plain_all(
        &mut self,
        messages: Vec<Value>,
        field: &str,
    ) -> Result<Vec<Value>, RowProblem> {
        let plain = |(i, message)| self.plain(message, &format!("{field}[{i}]"));
        messages.into_iter().enumerate().map(plain).collect()
    }

    /// A message with a text for its content; any other content than a list stays.
    pub(super) fn plain(&mut self, mut message: Value, place: &str) -> Result<Value, RowProblem> {
        let Some(content) = message.get_mut(self.key) else { return Ok(message) };
        if let Value::Array(parts) = content {
            let mut text = String::new();
            for (i, part) in parts.iter().enumerate() {
                text += self.text_of(part, &format!("{place}.{}[{i}]", self.key))?;
            }
            *content = Value::String(text);
        }
        Ok(message)
    }

    fn text_of<'p>(&mut self, value: &'p Value, place: &str) -> Result<&'p str, RowProblem> {
        let Value::Object(fields) = value else {
            return Err(wrong_type(place, value, "an object with `type`"));
        };
        match part(value, "type", place)? {
            "text" => part(value, "text", place),
            "image" => self.shown(own(fields, &["image", "path", "url"]), place),
            "image_url" => {
                let url = fields.get("image_url");
                let within = url.and_then(Value::as_object).and_then(|url| own(url, &["url"]));
                self.shown(within.or(url), place)
            }
            other => Err(RowProblem::Part { field: place.to_owned(), kind: other.to_owned() }),
        }
    }

    fn shown(&mut self, value: Option<&Value>, place: &str) -> Result<&'static str, RowProblem> {
        let found = value.map(|value| picture(value, place, self.entry)).transpose()?;
        self.pictures.push(found);
        Ok(PLACEHOLDER)
    }
}
