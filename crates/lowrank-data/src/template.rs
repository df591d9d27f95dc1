//! Chat templates by LLaMA-Factory's names: lists of slots that are encoded one by one.
//! Reference: LLaMA-Factory 0.9.5 `data/template.py`; the table itself is
//! `templates/llamafactory.json`.
//!
//! A slot is never joined with its neighbours before it is encoded, so token boundaries fall
//! where LLaMA-Factory puts them.

use indexmap::IndexMap;
use serde::Deserialize;

use crate::error::{DataError, Result, nearest};
use crate::options::DataOptions;
use crate::tool_styles::ToolStyle;

mod encode;
mod families;
mod fix_tokenizer;
mod reasoning;

pub use families::templates_of;
pub use fix_tokenizer::TokenizerFixes;
pub(crate) use fix_tokenizer::supply_missing;

const TABLE: &str = include_str!("templates/llamafactory.json");
/// Where a message's text goes.
const CONTENT: &str = "{{content}}";
const THOUGHT_WORDS: [&str; 2] = ["<think>\n", "\n</think>\n\n"];
const TOOL_CALL_WORDS: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Slot {
    /// Text, with `{{content}}` at most once.
    Text(String),
    /// `bos_token` or `eos_token`; left out if the tokenizer has none.
    Special { special: NamedToken },
    /// A token by its text.
    Token { token: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NamedToken {
    BosToken,
    EosToken,
}

/// What a reasoning template puts where an answer has no thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reasoning {
    /// Both thought words.
    Full,
    /// The closing one.
    CloseOnly,
}

/// A template as it stands in the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    prefix: Vec<Slot>,
    user: Option<Vec<Slot>>,
    assistant: Option<Vec<Slot>>,
    system: Option<Vec<Slot>>,
    observation: Option<Vec<Slot>>,
    function: Option<Vec<Slot>>,
    tool_format: Option<String>,
    /// Takes the tools' JSON as it stands, in place of the tool style's description.
    tools: Option<String>,
    #[serde(default)]
    default_system: String,
    #[serde(default)]
    default_system_unknown: bool,
    #[serde(default)]
    stop_words: Vec<String>,
    #[serde(default)]
    efficient_eos: bool,
    #[serde(default)]
    replace_eos: bool,
    #[serde(default)]
    replace_jinja_template: bool,
    #[serde(default)]
    system_in_first_user: bool,
    #[serde(default)]
    strip_tools_without_system: bool,
    reasoning: Option<Reasoning>,
    thought_words: Option<[String; 2]>,
    tool_call_words: Option<[String; 2]>,
    /// Has placeholders for pictures, films or sound; text rows don't need them.
    #[serde(default, rename = "media")]
    _media: bool,
}

/// A chat template with the recipe's choices applied.
#[derive(Debug, Clone)]
pub struct Template {
    name: String,
    prefix: Vec<Slot>,
    user: Vec<Slot>,
    assistant: Vec<Slot>,
    system: Vec<Slot>,
    observation: Vec<Slot>,
    function: Vec<Slot>,
    tool_style: ToolStyle,
    tools: Option<String>,
    default_system: String,
    stop_words: Vec<String>,
    efficient_eos: bool,
    replace_eos: bool,
    replace_jinja_template: bool,
    system_in_first_user: bool,
    strip_tools_without_system: bool,
    reasoning: Option<Reasoning>,
    thought_words: [String; 2],
    tool_call_words: [String; 2],
    enable_thinking: Option<bool>,
    preserve_thinking: bool,
    mask_history: bool,
    now: Option<crate::date::DateTime>,
}

/// The names of all built-in templates, sorted.
/// # Errors
/// Only if the table in the program itself is damaged.
pub fn template_names() -> Result<Vec<String>> {
    Ok(table()?.into_keys().collect())
}

fn table() -> Result<IndexMap<String, Entry>> {
    serde_json::from_str(TABLE).map_err(|e| DataError::TemplateTable { message: e.to_string() })
}

impl Template {
    /// The template `name` with the choices of `options`.
    /// # Errors
    /// An unknown name or tool format, a default system text that isn't known, or options that
    /// exclude each other.
    pub fn named(name: &str, options: &DataOptions) -> Result<Self> {
        let mut table = table()?;
        let Some(entry) = table.swap_remove(name) else {
            let nearest = nearest(name, table.keys().map(String::as_str));
            return Err(DataError::UnknownTemplate { name: name.to_owned(), nearest });
        };
        if entry.default_system_unknown && options.default_system.is_none() {
            return Err(DataError::UnknownDefaultSystem { name: name.to_owned() });
        }
        if entry.efficient_eos && options.train_on_prompt {
            let message =
                format!("excludes template `{name}`, which ends conversations, not turns");
            return Err(DataError::Option { option: "train_on_prompt", message });
        }
        Self::resolve(name, entry, options)
    }

    fn resolve(name: &str, entry: Entry, options: &DataOptions) -> Result<Self> {
        let content = || Slot::Text(CONTENT.to_owned());
        let with_eos = || vec![content(), Slot::Special { special: NamedToken::EosToken }];
        let default_assistant = if entry.efficient_eos { vec![content()] } else { with_eos() };
        let user = entry.user.unwrap_or_else(|| vec![content()]);
        let assistant = entry.assistant.unwrap_or(default_assistant);
        let function = match options.tool_format {
            Some(_) => with_eos(),
            None => entry.function.unwrap_or_else(|| assistant.clone()),
        };
        let tool_format = options.tool_format.clone().or(entry.tool_format);
        let words = |words: [&str; 2]| words.map(str::to_owned);
        Ok(Self {
            name: name.to_owned(),
            prefix: entry.prefix,
            observation: entry.observation.unwrap_or_else(|| user.clone()),
            user,
            assistant,
            system: entry.system.unwrap_or_else(|| vec![content()]),
            function,
            tool_style: ToolStyle::from_name(tool_format.as_deref().unwrap_or("default"))?,
            tools: entry.tools.filter(|_| options.tool_format.is_none()),
            default_system: options.default_system.clone().unwrap_or(entry.default_system),
            stop_words: entry.stop_words,
            efficient_eos: entry.efficient_eos,
            replace_eos: entry.replace_eos,
            replace_jinja_template: entry.replace_jinja_template,
            system_in_first_user: entry.system_in_first_user,
            strip_tools_without_system: entry.strip_tools_without_system,
            reasoning: entry.reasoning,
            thought_words: entry.thought_words.unwrap_or_else(|| words(THOUGHT_WORDS)),
            tool_call_words: entry.tool_call_words.unwrap_or_else(|| words(TOOL_CALL_WORDS)),
            enable_thinking: options.enable_thinking,
            preserve_thinking: options.preserve_thinking,
            mask_history: options.mask_history,
            now: options.now,
        })
    }

    /// The name it was asked for by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether one EOS ends the conversation, rather than each answer.
    #[must_use]
    pub fn efficient_eos(&self) -> bool {
        self.efficient_eos
    }

    /// Whether the template adds and removes thoughts.
    #[must_use]
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.is_some()
    }

    /// Whether the saved model should carry this template rather than its own.
    #[must_use]
    pub fn replaces_jinja_template(&self) -> bool {
        self.replace_jinja_template
    }
}
