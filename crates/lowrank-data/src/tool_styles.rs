//! Tool styles: how functions on offer are described in the system text, and how the model's
//! calls are written. The texts are those that LLaMA-Factory 0.9.5 writes, since the models were
//! taught with them; `tests/llamafactory.rs` compares the resulting ids. Several calls in one turn,
//! and texts among the arguments, follow what each style's own description says; where that says
//! nothing, they are an error.
//!
//! | style | description | calls |
//! | --- | --- | --- |
//! | `default` | a list in English | `Action:` and `Action Input:` |
//! | `glm4` | headings in Chinese | name, then arguments on the next line |
//! | `llama3` | indented JSON, with today's date | JSON with `parameters` |
//! | `mistral`, `lfm2`, `seed_oss` | one JSON list | JSON list, Python calls, XML |
//! | `qwen`, `ling`, `minimax1` | a JSON object a line | JSON in XML tags |
//! | `glm4_moe`, `minimax2` | a JSON object a line | XML |

use serde_json::Value;

use crate::date::DateTime;
use crate::error::{DataError, Result, RowProblem, nearest};
use crate::python_json;

mod json_calls;
mod text_calls;
mod xml_calls;

/// A function call: its name and the arguments.
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Value,
}

impl Call {
    /// The arguments as Python writes them.
    fn json(&self) -> String {
        python_json::dumps(&self.arguments)
    }

    /// Names and values of the arguments; a text as it is, anything else as JSON.
    fn pairs(&self) -> impl Iterator<Item = (&str, String)> {
        self.arguments.as_object().into_iter().flatten().map(|(key, value)| {
            let text = value.as_str().map_or_else(|| python_json::dumps(value), str::to_owned);
            (key.as_str(), text)
        })
    }
}

/// A tool style; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the names in the table above")]
pub enum ToolStyle {
    Default,
    Glm4,
    Glm4Moe,
    Lfm2,
    Ling,
    Llama3,
    Minimax1,
    Minimax2,
    Mistral,
    Qwen,
    SeedOss,
    /// Known by name only: conversations with tools are refused.
    Gemma4,
    /// Known by name only: conversations with tools are refused.
    Qwen3_5,
}

const NAMES: [(&str, ToolStyle); 13] = [
    ("default", ToolStyle::Default),
    ("gemma4", ToolStyle::Gemma4),
    ("glm4", ToolStyle::Glm4),
    ("glm4_moe", ToolStyle::Glm4Moe),
    ("lfm2", ToolStyle::Lfm2),
    ("ling", ToolStyle::Ling),
    ("llama3", ToolStyle::Llama3),
    ("minimax1", ToolStyle::Minimax1),
    ("minimax2", ToolStyle::Minimax2),
    ("mistral", ToolStyle::Mistral),
    ("qwen", ToolStyle::Qwen),
    ("qwen3_5", ToolStyle::Qwen3_5),
    ("seed_oss", ToolStyle::SeedOss),
];

impl ToolStyle {
    /// The style called `name`.
    /// # Errors
    /// An unknown name, with the one most like it.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = NAMES.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, style)| style).ok_or_else(|| DataError::UnknownToolFormat {
            name: name.to_owned(),
            nearest: nearest(name, NAMES.map(|(known, _)| known)),
        })
    }

    /// Its name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.into_iter().find(|(_, style)| *style == self).map_or("default", |(name, _)| name)
    }

    /// The description of `tools`, a JSON list; nothing for an empty one.
    pub(crate) fn tools(self, tools: &str, now: Option<DateTime>) -> Result<String, RowProblem> {
        if tools.is_empty() {
            return Ok(String::new());
        }
        let value: Value = serde_json::from_str(tools)
            .map_err(|e| RowProblem::BadTools { message: e.to_string() })?;
        let list = match value {
            Value::Array(list) => list,
            Value::Object(_) => vec![value],
            other => {
                return Err(RowProblem::BadTools { message: crate::error::describe(&other) });
            }
        };
        if list.is_empty() {
            return Ok(String::new());
        }
        match self {
            Self::Default => text_calls::default_tools(&list),
            Self::Glm4 => text_calls::glm4_tools(&list),
            Self::Llama3 => json_calls::llama3_tools(&list, now),
            Self::Lfm2 => Ok(text_calls::lfm2_tools(&list)),
            Self::Mistral => Ok(json_calls::mistral_tools(&list)),
            Self::Qwen => Ok(json_calls::qwen_tools(&list)),
            Self::Ling => Ok(json_calls::ling_tools(&list)),
            Self::Minimax1 => Ok(json_calls::minimax1_tools(&list)),
            Self::Glm4Moe => Ok(xml_calls::glm4_moe_tools(&list)),
            Self::Minimax2 => Ok(xml_calls::minimax2_tools(&list)),
            Self::SeedOss => Ok(xml_calls::seed_oss_tools(&list)),
            Self::Gemma4 | Self::Qwen3_5 => Err(self.unknown()),
        }
    }

    /// The calls of a function turn, given as JSON.
    pub(crate) fn calls(self, json: &str) -> Result<String, RowProblem> {
        let calls = parse_calls(json)?;
        match self {
            Self::Default => Ok(text_calls::default_calls(&calls)),
            Self::Glm4 => self.only_one(&calls).map(text_calls::glm4_call),
            Self::Lfm2 => Ok(text_calls::lfm2_calls(&calls)),
            Self::Llama3 => Ok(json_calls::llama3_calls(&calls)),
            Self::Mistral => Ok(json_calls::mistral_calls(&calls)),
            Self::Qwen | Self::Ling => Ok(json_calls::qwen_calls(&calls)),
            Self::Minimax1 => Ok(json_calls::minimax1_calls(&calls)),
            // How LLaMA-Factory joins several calls of these is not known.
            Self::Glm4Moe => self.only_one(&calls).map(xml_calls::glm4_moe_call),
            Self::Minimax2 => self.only_one(&calls).map(xml_calls::minimax2_call),
            Self::SeedOss => self.only_one(&calls).map(xml_calls::seed_oss_call),
            Self::Gemma4 | Self::Qwen3_5 => Err(self.unknown()),
        }
    }

    fn only_one(self, calls: &[Call]) -> Result<&Call, RowProblem> {
        match calls {
            [call] => Ok(call),
            _ => Err(RowProblem::ToolStyle {
                style: self.name(),
                message: format!("a turn has {} calls; this style writes exactly one", calls.len()),
            }),
        }
    }

    fn unknown(self) -> RowProblem {
        RowProblem::ToolStyle {
            style: self.name(),
            message: "its texts aren't known to lowrank; leave out `template` to use the model's \
                      own chat template, or choose another `tool_format`"
                .to_owned(),
        }
    }
}

pub(crate) fn parse_calls(json: &str) -> Result<Vec<Call>, RowProblem> {
    let bad = |message: String| RowProblem::BadFunctionCall { message };
    let value: Value = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
    let list = match value {
        Value::Array(list) => list,
        other => vec![other],
    };
    let call = |value: &Value| {
        let name = value.get("name").and_then(Value::as_str);
        let (Some(name), Some(arguments)) = (name, value.get("arguments")) else {
            return Err(bad(crate::error::describe(value)));
        };
        // OpenAI's messages hold the arguments as JSON text.
        let arguments = match arguments.as_str().map(serde_json::from_str::<Value>) {
            Some(Ok(inner @ Value::Object(_))) => inner,
            _ => arguments.clone(),
        };
        Ok(Call { name: name.to_owned(), arguments })
    };
    list.iter().map(call).collect()
}

/// The function itself, of a tool that may be wrapped as OpenAI does.
fn bare(tool: &Value) -> &Value {
    let is_wrapped = tool.get("type").and_then(Value::as_str) == Some("function");
    tool.get("function").filter(|_| is_wrapped).unwrap_or(tool)
}

/// The tool as OpenAI wraps it.
pub(crate) fn wrapped(tool: &Value) -> Value {
    if tool.get("type").and_then(Value::as_str) == Some("function") {
        return tool.clone();
    }
    serde_json::json!({"type": "function", "function": tool})
}

/// A text field of a function's description; absent ones are an error that names them.
fn text_of<'a>(tool: &'a Value, key: &str) -> Result<&'a str, RowProblem> {
    tool.get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| RowProblem::BadTools { message: format!("a function has no text `{key}`") })
}
