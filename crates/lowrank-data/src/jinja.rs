//! The model's own chat template, rendered as transformers does, and where its answers stand.
//! Reference: transformers `utils/chat_template_utils.py`.
//!
//! Token ids are those of `apply_chat_template(messages, tokenize=True)`: the whole rendering is
//! encoded at once. An answer is found by rendering the conversation up to it: the text from the
//! end of the generation prompt to the end of the turn. Where the template writes earlier turns
//! otherwise once more follow (Qwen3 drops their thoughts), the answer is found by rendering with
//! a placeholder in its place. If neither works, the row is an error, unless `mask_history` asks
//! for the last answer only.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::chat::Turns;
use crate::conversation::{Conversation, Message, Role};
use crate::date::DateTime;
use crate::error::{Result, RowProblem};
use crate::options::DataOptions;
use crate::tokenizer::{Special, Tokenizer};

mod environment;
mod spans;

use environment::Program;
use spans::Span;

/// A model's chat template; a second one for conversations with tools, if the model has one.
#[derive(Debug, Clone)]
pub(crate) struct JinjaTemplate {
    plain: Program,
    with_tools: Program,
    special: Vec<(&'static str, String)>,
    default_system: String,
    enable_thinking: Option<bool>,
    mask_history: bool,
}

/// What a template is rendered with.
struct Chat<'a> {
    template: &'a JinjaTemplate,
    program: &'a Program,
    messages: Vec<Value>,
    tools: Value,
}

impl JinjaTemplate {
    /// The tokenizer's template, if it has one.
    pub(crate) fn of(tokenizer: &Tokenizer, options: &DataOptions) -> Result<Option<Self>> {
        let (Some(plain), Some(with_tools)) =
            (tokenizer.chat_template(false), tokenizer.chat_template(true))
        else {
            return Ok(None);
        };
        let folder: PathBuf = tokenizer.folder().to_owned();
        let compile = |source: &str, now: Option<DateTime>| Program::new(&folder, source, now);
        let named = Special::ALL.iter();
        let special = named.filter_map(|s| Some((s.key(), tokenizer.special(*s)?.to_owned())));
        Ok(Some(Self {
            plain: compile(plain, options.now)?,
            with_tools: compile(with_tools, options.now)?,
            special: special.collect(),
            default_system: options.default_system.clone().unwrap_or_default(),
            enable_thinking: options.enable_thinking,
            mask_history: options.mask_history,
        }))
    }

    /// The prompt as the model would be asked, generation prompt included.
    pub(crate) fn prompt(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Vec<u32>, RowProblem> {
        let chat = self.chat(conversation, None)?;
        tokenizer.encode(&chat.render(&chat.messages, true)?)
    }

    /// Every turn with its answer.
    pub(crate) fn multiturn(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<Turns, RowProblem> {
        let chat = self.chat(conversation, Some(answer))?;
        let full = chat.render(&chat.messages, false)?;
        let mut found = Vec::new();
        let last = chat.messages.len().saturating_sub(1);
        for (index, message) in chat.messages.iter().enumerate() {
            if message.get("role").and_then(Value::as_str) != Some("assistant") {
                continue;
            }
            match spans::find(&chat, &full, index)? {
                Some(span) => found.push(span),
                None if self.mask_history && index != last => {}
                None => return Err(lost(index)),
            }
        }
        turns(tokenizer, &full, &found)
    }

    /// The whole prompt as one, and the answer.
    pub(crate) fn oneturn(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<Turns, RowProblem> {
        let chat = self.chat(conversation, Some(answer))?;
        let full = chat.render(&chat.messages, false)?;
        let last = chat.messages.len().saturating_sub(1);
        let span = spans::find(&chat, &full, last)?.ok_or_else(|| lost(last))?;
        turns(tokenizer, &full, &[span])
    }

    fn chat(
        &self,
        conversation: &Conversation,
        answer: Option<&Message>,
    ) -> Result<Chat<'_>, RowProblem> {
        let tools = tools(&conversation.tools)?;
        let program = if tools.is_null() { &self.plain } else { &self.with_tools };
        let messages = match &conversation.original {
            Some(original) => self.original(original, conversation, answer)?,
            None => self.written(conversation, answer)?,
        };
        Ok(Chat { template: self, program, messages, tools })
    }

    /// Messages as the data has them, without keys that are null. Another answer than the row's own
    /// takes its place.
    fn original(
        &self,
        original: &[Value],
        conversation: &Conversation,
        answer: Option<&Message>,
    ) -> Result<Vec<Value>, RowProblem> {
        let mut messages = Vec::with_capacity(original.len() + 1);
        let is = |m: &Value, role: &str| m.get("role").and_then(Value::as_str) == Some(role);
        let has_system = original.first().is_some_and(|m| is(m, "system"));
        if !has_system && !self.default_system.is_empty() {
            messages.push(json!({"role": "system", "content": self.default_system}));
        }
        for message in original {
            let entries = message.as_object().into_iter().flatten();
            let kept = entries.filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone()));
            messages.push(Value::Object(kept.collect()));
        }
        if answer.is_none() || answer != conversation.own_answer() {
            if messages.last().is_some_and(|m| is(m, "assistant")) {
                messages.pop();
            }
            messages.extend(answer.map(written).transpose()?);
        }
        Ok(messages)
    }

    /// The messages as OpenAI spells them.
    fn written(
        &self,
        conversation: &Conversation,
        answer: Option<&Message>,
    ) -> Result<Vec<Value>, RowProblem> {
        let mut messages = Vec::with_capacity(conversation.prompt.len() + 2);
        let system = match conversation.system.as_str() {
            "" => self.default_system.as_str(),
            own => own,
        };
        if !system.is_empty() {
            messages.push(json!({"role": "system", "content": system}));
        }
        for message in conversation.prompt.iter().chain(answer) {
            messages.push(written(message)?);
        }
        Ok(messages)
    }
}

impl Chat<'_> {
    fn render(&self, messages: &[Value], generation_prompt: bool) -> Result<String, RowProblem> {
        let mut context = serde_json::Map::new();
        context.insert("messages".to_owned(), Value::from(messages));
        context.insert("tools".to_owned(), self.tools.clone());
        context.insert("documents".to_owned(), Value::Null);
        context.insert("add_generation_prompt".to_owned(), Value::Bool(generation_prompt));
        for (name, token) in &self.template.special {
            context.insert((*name).to_owned(), Value::from(token.as_str()));
        }
        // Only a refusal is passed on: templates think by default, and `apply_chat_template`
        // without the argument must give the same ids.
        if self.template.enable_thinking == Some(false) {
            context.insert("enable_thinking".to_owned(), Value::Bool(false));
        }
        self.program.render(&Value::Object(context))
    }
}

/// Encodes the rendering and splits it at the answers.
fn turns(tokenizer: &Tokenizer, full: &str, answers: &[Span]) -> Result<Turns, RowProblem> {
    let encoding = tokenizer.encoding(full, None, false)?;
    let tokens: Vec<_> =
        encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().copied()).collect();
    let mut turns = Turns::default();
    let mut rest = tokens.as_slice();
    for answer in answers {
        let answer = spans::without_trailing_space(answer, full, &tokens, tokenizer);
        let begin = rest.partition_point(|(_, (_, end))| *end <= answer.start);
        let (source, from_answer) = rest.split_at(begin);
        let end = from_answer.partition_point(|(_, (start, _))| *start < answer.end);
        let (target, after) = from_answer.split_at(end);
        let ids = |part: &[(u32, _)]| part.iter().map(|(id, _)| *id).collect();
        turns.pairs.push((ids(source), ids(target)));
        rest = after;
    }
    turns.tail = rest.iter().map(|(id, _)| *id).collect();
    Ok(turns)
}

/// The tools as a list in OpenAI's wrapping, or null.
fn tools(text: &str) -> Result<Value, RowProblem> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    let value: Value =
        serde_json::from_str(text).map_err(|e| RowProblem::BadTools { message: e.to_string() })?;
    match value {
        Value::Array(list) if list.is_empty() => Ok(Value::Null),
        Value::Array(list) => Ok(list.iter().map(crate::tool_styles::wrapped).collect()),
        tool @ Value::Object(_) => Ok(Value::from(vec![crate::tool_styles::wrapped(&tool)])),
        other => Err(RowProblem::BadTools { message: crate::error::describe(&other) }),
    }
}

fn written(message: &Message) -> Result<Value, RowProblem> {
    Ok(match message.role {
        Role::User => json!({"role": "user", "content": message.content}),
        Role::Assistant => json!({"role": "assistant", "content": message.content}),
        Role::Observation => json!({"role": "tool", "content": message.content}),
        Role::Function => function_turn(&message.content)?,
    })
}

fn function_turn(content: &str) -> Result<Value, RowProblem> {
    let calls = crate::tool_styles::parse_calls(content)?;
    let calls: Vec<_> = calls
        .iter()
        .map(
            |c| json!({"type": "function", "function": {"name": c.name, "arguments": c.arguments}}),
        )
        .collect();
    Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}))
}

fn lost(index: usize) -> RowProblem {
    RowProblem::Render {
        message: format!(
            "it writes message {index} otherwise once more messages follow, so the answer can't be \
             found; set `mask_history: true` to train on the last answer only, or name a `template`"
        ),
    }
}
