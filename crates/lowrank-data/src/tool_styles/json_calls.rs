//! Styles whose calls are JSON.

use serde_json::{Value, json};

use super::{Call, bare, wrapped};
use crate::date::DateTime;
use crate::error::RowProblem;
use crate::python_json::{dumps, dumps_indented};

const XML_HEAD: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
    You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
const JSON_TAIL: &str = "\n</tools>\n\nFor each function call, return a json object with function \
    name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": \
    <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

/// Tools in OpenAI's wrapping, one a line, as the qwen-like styles list them.
pub(super) fn listed(tools: &[Value]) -> String {
    let lines: Vec<_> = tools.iter().map(|tool| format!("\n{}", dumps(&wrapped(tool)))).collect();
    format!("{XML_HEAD}{}", lines.concat())
}

pub(super) fn qwen_tools(tools: &[Value]) -> String {
    format!("\n\n{}{JSON_TAIL}", listed(tools))
}

pub(super) fn ling_tools(tools: &[Value]) -> String {
    format!("{}{JSON_TAIL}\ndetailed thinking off", listed(tools))
}

fn object(call: &Call) -> String {
    format!("{{\"name\": {}, \"arguments\": {}}}", dumps(&json!(call.name)), call.json())
}

pub(super) fn qwen_calls(calls: &[Call]) -> String {
    let calls: Vec<_> =
        calls.iter().map(|c| format!("<tool_call>\n{}\n</tool_call>", object(c))).collect();
    calls.join("\n")
}

pub(super) fn minimax1_tools(tools: &[Value]) -> String {
    let lines: Vec<_> = tools.iter().map(|tool| format!("{}\n", dumps(bare(tool)))).collect();
    format!(
        "You are provided with these tools:\n<tools>\n{}</tools>\n\nIf you need to call tools, \
         please respond with <tool_calls></tool_calls> XML tags, and provide tool-name and \
         json-object of arguments, following the format below:\n<tool_calls>\n{{\"name\": \
         <tool-name-1>, \"arguments\": <args-json-object-1>}}\n...\n</tool_calls>",
        lines.concat()
    )
}

pub(super) fn minimax1_calls(calls: &[Call]) -> String {
    let calls: Vec<_> = calls.iter().map(|c| format!("{}\n", object(c))).collect();
    format!("<tool_calls>\n{}</tool_calls>", calls.concat())
}

pub(super) fn mistral_tools(tools: &[Value]) -> String {
    let list = Value::Array(tools.iter().map(wrapped).collect());
    format!("[AVAILABLE_TOOLS] {}[/AVAILABLE_TOOLS]", dumps(&list))
}

pub(super) fn mistral_calls(calls: &[Call]) -> String {
    let calls: Vec<_> = calls.iter().map(object).collect();
    format!("[{}]", calls.join(", "))
}

pub(super) fn llama3_tools(tools: &[Value], now: Option<DateTime>) -> Result<String, RowProblem> {
    let style = "llama3";
    let today = now.ok_or("writes today's date, and none was given".to_owned());
    let today = today.and_then(|now| now.strftime("%d %b %Y"));
    let today = today.map_err(|message| RowProblem::ToolStyle { style, message })?;
    let list: Vec<_> =
        tools.iter().map(|tool| format!("{}\n\n", dumps_indented(&wrapped(tool), 4))).collect();
    Ok(format!(
        "Cutting Knowledge Date: December 2023\nToday Date: {today}\n\nYou have access to the \
         following functions. To call a function, please respond with JSON for a function call. \
         Respond in the format {{\"name\": function name, \"parameters\": dictionary of argument \
         name and its value}}. Do not use variables.\n\n{}",
        list.concat()
    ))
}

/// One call as an object, several as a list.
pub(super) fn llama3_calls(calls: &[Call]) -> String {
    let object = |c: &Call| json!({"name": c.name, "parameters": c.arguments});
    match calls {
        [call] => dumps(&object(call)),
        _ => dumps(&Value::Array(calls.iter().map(object).collect())),
    }
}
