//! How models' APIs write tools: definitions, calls, answers.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use warren_types::Error;

use crate::app::App;
use crate::app::tools::{Definition, Output, Scope};

/// Calls that one request may carry.
const MAX_CALLS: usize = 64;
const MAX_ID_BYTES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Mcp,
    /// Chat Completions.
    OpenAi,
    /// OpenAI's Responses.
    Responses,
    Anthropic,
}

/// A call as a model made it.
#[derive(Debug)]
pub(super) struct ModelCall {
    style: Style,
    id: String,
    name: String,
    /// What cannot be read is told to the model that wrote it.
    input: Result<Map<String, Value>, String>,
}

impl Style {
    pub(super) fn parse(format: Option<&str>) -> Result<Self, Error> {
        match format {
            None | Some("" | "mcp") => Ok(Self::Mcp),
            Some("openai") => Ok(Self::OpenAi),
            Some("responses") => Ok(Self::Responses),
            Some("anthropic") => Ok(Self::Anthropic),
            Some(_) => Err(Error::invalid("format must be mcp, openai, responses or anthropic")),
        }
    }

    pub(super) fn define(self, tool: &Definition) -> Value {
        let (name, description, schema) = (tool.name, &tool.description, &*tool.schema);
        match self {
            Self::Mcp => json!({
                "name": name, "description": description, "inputSchema": schema,
                "annotations": {"readOnlyHint": tool.read_only, "destructiveHint": tool.destructive},
            }),
            Self::OpenAi => json!({
                "type": "function", "function": {"name": name, "description": description, "parameters": schema},
            }),
            Self::Responses => json!({
                "type": "function", "name": name, "description": description, "parameters": schema, "strict": false,
            }),
            Self::Anthropic => json!({"name": name, "description": description, "input_schema": schema}),
        }
    }
}

/// The calls in a body, and whether they were a list.
pub(super) fn calls(body: &Value) -> Result<(Vec<ModelCall>, bool), Error> {
    match body {
        Value::Array(calls) if calls.len() > MAX_CALLS => {
            Err(Error::invalid(format!("at most {MAX_CALLS} calls can be made in one request")))
        }
        Value::Array(calls) => Ok((calls.iter().map(ModelCall::parse).collect::<Result<_, _>>()?, true)),
        call => Ok((vec![ModelCall::parse(call)?], false)),
    }
}

impl ModelCall {
    fn parse(call: &Value) -> Result<Self, Error> {
        let text = |value: &Value, field: &str| match value.get(field) {
            Some(Value::String(text)) if !text.is_empty() && text.len() <= MAX_ID_BYTES => Ok(text.clone()),
            _ => Err(Error::invalid(format!(
                "a call must have {field}, a string of 1 to {MAX_ID_BYTES} bytes; a call is a tool_call or a function_call of \
                 OpenAI's, or a tool_use of Anthropic's"
            ))),
        };
        match call.get("type").and_then(Value::as_str) {
            Some("tool_use") => Ok(Self {
                style: Style::Anthropic,
                id: text(call, "id")?,
                name: text(call, "name")?,
                input: input(call.get("input")),
            }),
            Some("function_call") => Ok(Self {
                style: Style::Responses,
                id: text(call, "call_id")?,
                name: text(call, "name")?,
                input: input(call.get("arguments")),
            }),
            None | Some("function") if call.get("function").is_some() => {
                let function = &call["function"];
                Ok(Self {
                    style: Style::OpenAi,
                    id: text(call, "id")?,
                    name: text(function, "name")?,
                    input: input(function.get("arguments")),
                })
            }
            _ => Err(Error::invalid(
                "the body must be a tool_call or a function_call of OpenAI's, a tool_use of Anthropic's, or an array of them",
            )),
        }
    }

    /// What goes back to the model. A tool that is not there is its mistake, too.
    pub(super) async fn run(self, app: &Arc<App>, scope: &Scope) -> Value {
        let Self { style, id, name, input } = self;
        let output = match input {
            Ok(input) => app.call_tool(scope, &name, input).await.unwrap_or_else(Output::from),
            Err(message) => Output::from(Error::invalid(message)),
        };
        answer(style, &id, output)
    }
}

/// An object, or the JSON of one.
fn input(value: Option<&Value>) -> Result<Map<String, Value>, String> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(fields)) => Ok(fields.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|error| format!("the arguments are not a JSON object: {error}")),
        Some(_) => Err("the arguments must be a JSON object".to_owned()),
    }
}

fn answer(style: Style, id: &str, output: Output) -> Value {
    let Output { text, is_error, .. } = output;
    // These have no field for it.
    let marked = |text: String| if is_error { format!("Error: {text}") } else { text };
    match style {
        Style::Anthropic | Style::Mcp => json!({
            "type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": text}], "is_error": is_error,
        }),
        Style::OpenAi => json!({"role": "tool", "tool_call_id": id, "content": marked(text)}),
        Style::Responses => json!({"type": "function_call_output", "call_id": id, "output": marked(text)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_in_every_style() {
        for (call, style) in [
            (json!({"type": "tool_use", "id": "1", "name": "t", "input": {"a": 1}}), Style::Anthropic),
            (
                json!({"type": "function_call", "call_id": "1", "name": "t", "arguments": "{\"a\": 1}"}),
                Style::Responses,
            ),
            (
                json!({"id": "1", "type": "function", "function": {"name": "t", "arguments": "{\"a\": 1}"}}),
                Style::OpenAi,
            ),
            (json!({"id": "1", "function": {"name": "t", "arguments": {"a": 1}}}), Style::OpenAi),
        ] {
            let (calls, is_list) = calls(&call).unwrap();
            assert!(!is_list);
            assert_eq!((calls[0].style, calls[0].id.as_str(), calls[0].name.as_str()), (style, "1", "t"));
            assert_eq!(calls[0].input.as_ref().unwrap()["a"], 1);
        }
        for bad in [
            json!(null),
            json!(1),
            json!({}),
            json!([1]),
            json!({"type": "tool_use", "name": "t"}),
            json!({"type": "tool_use", "id": "x".repeat(300), "name": "t"}),
            json!({"type": "function"}),
        ] {
            assert!(calls(&bad).is_err(), "{bad}");
        }
        assert!(calls(&json!(vec![json!({"type": "tool_use", "id": "1", "name": "t"}); 65])).is_err());
    }

    #[test]
    fn arguments_that_cannot_be_read_are_told_to_the_model() {
        assert!(input(Some(&json!("{"))).unwrap_err().contains("not a JSON object"));
        assert!(input(Some(&json!("[]"))).unwrap_err().contains("not a JSON object"));
        assert!(input(Some(&json!(3))).is_err());
        assert!(input(None).unwrap().is_empty());
    }
}
