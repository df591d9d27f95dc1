//! Styles whose calls are XML. The unclosed tags are LLaMA-Factory's.

use serde_json::Value;

use super::{Call, bare};
use crate::python_json::dumps;

pub(super) fn glm4_moe_tools(tools: &[Value]) -> String {
    format!(
        "\n\n{}\n</tools>\n\nFor each function call, output the function name and arguments within \
         the following XML format:\n<tool_call>{{function-name}}\n<arg_key>{{arg-key-1}}</arg_key>\n\
         <arg_value>{{arg-value-1}}</arg_value>\n<arg_key>{{arg-key-2}}</arg_key>\n\
         <arg_value>{{arg-value-2}}</arg_value>\n...\n</tool_call>\n",
        super::json_calls::listed(tools)
    )
}

pub(super) fn glm4_moe_call(call: &Call) -> String {
    let arguments: Vec<_> = call
        .pairs()
        .map(|(k, v)| format!("\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>"))
        .collect();
    format!("\n<tool_call>{}{}", call.name, arguments.concat())
}

pub(super) fn minimax2_tools(tools: &[Value]) -> String {
    let lines: Vec<_> =
        tools.iter().map(|tool| format!("<tool>{}</tool>\n", dumps(bare(tool)))).collect();
    format!(
        "\n\n# Tools\n\nYou may call one or more tools to assist with the user query.\nHere are \
         the tools available in JSONSchema format:\n\n<tools>\n{}</tools>\n\nWhen making tool \
         calls, use XML format to invoke tools and pass parameters:\n\n<minimax:tool_call>\n\
         <invoke name=\"tool-name-1\">\n<parameter name=\"param-key-1\">param-value-1</parameter>\n\
         <parameter name=\"param-key-2\">param-value-2</parameter>\n...\n</invoke>\n\
         </minimax:tool_call>",
        lines.concat()
    )
}

pub(super) fn minimax2_call(call: &Call) -> String {
    let arguments: Vec<_> =
        call.pairs().map(|(k, v)| format!("<parameter name=\"{k}\">{v}</parameter>\n")).collect();
    format!("<invoke name=\"{}\">\n{}</invoke>", call.name, arguments.concat())
}

pub(super) fn seed_oss_tools(tools: &[Value]) -> String {
    let list = Value::Array(tools.iter().map(|tool| bare(tool).clone()).collect());
    format!(
        "system\nYou are Doubao, a helpful AI assistant. You may call one or more functions to \
         assist with the user query.Tool List:\nYou are authorized to use the following tools \
         (described in JSON Schema format). Before performing any task, you must decide how to \
         call them based on the descriptions and parameters of these tools.\n{}\n\
         工具调用请遵循如下格式:\n<seed:tool_call>\n<function=example_function_name>\n\
         <parameter=example_parameter_1>value_1</parameter>\n<parameter=example_parameter_2>This \
         is the value for the second parameter\nthat can span\nmultiple lines</parameter>\n\
         </function>\n</seed:tool_call>\n",
        dumps(&list)
    )
}

pub(super) fn seed_oss_call(call: &Call) -> String {
    let arguments: Vec<_> =
        call.pairs().map(|(k, v)| format!("\n<parameter={k}>{v}</parameter>")).collect();
    format!(
        "\n<seed:tool_call>\n<function={}{}\n</function>\n</seed:tool_call>",
        call.name,
        arguments.concat()
    )
}
