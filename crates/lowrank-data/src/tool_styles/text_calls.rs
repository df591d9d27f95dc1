//! Styles whose calls are lines of text.

use serde_json::Value;

use super::{Call, bare, text_of};
use crate::error::RowProblem;
use crate::python_json::{dumps, dumps_indented};

pub(super) fn default_tools(tools: &[Value]) -> Result<String, RowProblem> {
    let mut descriptions = String::new();
    let mut names = Vec::with_capacity(tools.len());
    for tool in tools {
        let tool = bare(tool);
        let name = text_of(tool, "name")?;
        let description = tool.get("description").and_then(Value::as_str).unwrap_or("");
        let arguments = arguments(tool)?;
        descriptions += &format!(
            "> Tool Name: {name}\nTool Description: {description}\nTool Args:\n{arguments}\n"
        );
        names.push(name);
    }
    Ok(format!(
        "You have access to the following tools:\n{descriptions}Use the following format if using \
         a tool:\n```\nAction: tool name (one of [{}])\nAction Input: the input to the tool, in a \
         JSON format representing the kwargs (e.g. ```{{\"input\": \"hello world\", \
         \"num_beams\": 5}}```)\n```\n",
        names.join(", ")
    ))
}

/// One line an argument: name, type, whether it is required, what it may be.
fn arguments(tool: &Value) -> Result<String, RowProblem> {
    let Some(parameters) = tool.get("parameters") else { return Ok(String::new()) };
    let required = parameters.get("required").and_then(Value::as_array);
    let properties = parameters.get("properties").and_then(Value::as_object);
    let mut lines = String::new();
    for (name, schema) in properties.into_iter().flatten() {
        let kind = schema.get("type").and_then(Value::as_str).unwrap_or("");
        let is_required = required.is_some_and(|r| r.iter().any(|v| v.as_str() == Some(name)));
        let required = if is_required { ", required" } else { "" };
        let description = schema.get("description").and_then(Value::as_str).unwrap_or("");
        lines += &format!(
            "  - {name} ({kind}{required}): {description}{}{}\n",
            choices(schema)?,
            items(schema)
        );
    }
    Ok(lines)
}

fn choices(schema: &Value) -> Result<String, RowProblem> {
    let Some(choices) = schema.get("enum").and_then(Value::as_array).filter(|c| !c.is_empty())
    else {
        return Ok(String::new());
    };
    let choices: Option<Vec<_>> = choices.iter().map(Value::as_str).collect();
    let choices = choices.ok_or_else(|| RowProblem::BadTools {
        message: "an argument's `enum` isn't a list of texts".to_owned(),
    })?;
    Ok(format!(", should be one of [{}]", choices.join(", ")))
}

fn items(schema: &Value) -> String {
    match schema.get("items").and_then(Value::as_object).filter(|i| !i.is_empty()) {
        None => String::new(),
        Some(items) => {
            let kind = items.get("type").and_then(Value::as_str).unwrap_or("");
            format!(", where each item should be {kind}")
        }
    }
}

pub(super) fn default_calls(calls: &[Call]) -> String {
    let calls: Vec<_> =
        calls.iter().map(|c| format!("Action: {}\nAction Input: {}", c.name, c.json())).collect();
    calls.join("\n")
}

pub(super) fn glm4_tools(tools: &[Value]) -> Result<String, RowProblem> {
    let mut out = "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，\
                   你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
        .to_owned();
    for tool in tools {
        let tool = bare(tool);
        let json = dumps_indented(tool, 4);
        out += &format!(
            "\n\n## {}\n\n{json}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
            text_of(tool, "name")?
        );
    }
    Ok(out)
}

pub(super) fn glm4_call(call: &Call) -> String {
    format!("{}\n{}", call.name, call.json())
}

pub(super) fn lfm2_tools(tools: &[Value]) -> String {
    let list = Value::Array(tools.iter().map(|tool| bare(tool).clone()).collect());
    format!("List of tools: <|tool_list_start|>{}<|tool_list_end|>", dumps(&list))
}

/// Calls as Python would write them, with JSON values.
pub(super) fn lfm2_calls(calls: &[Call]) -> String {
    let call = |c: &Call| {
        let entries = c.arguments.as_object().into_iter().flatten();
        let arguments: Vec<_> = entries.map(|(k, v)| format!("{k}={}", dumps(v))).collect();
        format!("{}({})", c.name, arguments.join(", "))
    };
    let calls: Vec<_> = calls.iter().map(call).collect();
    format!("<|tool_call_start|>[{}]<|tool_call_end|>", calls.join(", "))
}
