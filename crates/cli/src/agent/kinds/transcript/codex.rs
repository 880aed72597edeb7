//! `codex exec --json`.

use serde_json::Value;

use super::{Step, Totals, input_of, number_at, text_at};

pub(super) fn steps(event: &Value, totals: &mut Totals) -> Vec<Step> {
    let item = event.get("item").unwrap_or(&Value::Null);
    match text_at(event, "/type") {
        Some("thread.started") => {
            totals.session = text_at(event, "/thread_id").map(str::to_owned);
            vec![Step::Note("Codex".to_owned())]
        }
        Some("item.started") => called(item).into_iter().collect(),
        Some("item.completed") => completed(item),
        Some("turn.completed") => {
            totals.input_tokens += number_at(event, "/usage/input_tokens");
            totals.output_tokens += number_at(event, "/usage/output_tokens");
            Vec::new()
        }
        Some("turn.failed") => {
            let why = text_at(event, "/error/message").unwrap_or("the turn failed").to_owned();
            totals.error = Some(why.clone());
            vec![Step::Failed(why)]
        }
        Some("error") => {
            text_at(event, "/message").map(|text| Step::Note(text.to_owned())).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn called(item: &Value) -> Option<Step> {
    let (tool, with) = match text_at(item, "/type")? {
        "command_execution" => ("shell".to_owned(), text_at(item, "/command")?.to_owned()),
        "mcp_tool_call" => (
            format!(
                "{}.{}",
                text_at(item, "/server").unwrap_or("mcp"),
                text_at(item, "/tool").unwrap_or("?")
            ),
            input_of(item.get("arguments").unwrap_or(&Value::Null)),
        ),
        _ => return None,
    };
    Some(Step::Calls { tool, with })
}

fn completed(item: &Value) -> Vec<Step> {
    let text = |pointer| text_at(item, pointer).unwrap_or_default().to_owned();
    match text_at(item, "/type") {
        Some("agent_message") => vec![Step::Says(text("/text"))],
        Some("command_execution") if number_at(item, "/exit_code") != 0 => {
            vec![Step::Failed(format!(
                "exit code {}: {}",
                number_at(item, "/exit_code"),
                text("/aggregated_output")
            ))]
        }
        Some("mcp_tool_call") if text_at(item, "/status") == Some("failed") => vec![Step::Failed(
            text_at(item, "/error/message")
                .or_else(|| text_at(item, "/result/content/0/text"))
                .unwrap_or("it failed")
                .to_owned(),
        )],
        Some("file_change") => {
            let changes = item.get("changes").and_then(Value::as_array).into_iter().flatten();
            let changed = |change: &Value| {
                Some(Step::Calls {
                    tool: text_at(change, "/kind")?.to_owned(),
                    with: text_at(change, "/path")?.to_owned(),
                })
            };
            changes.filter_map(changed).collect()
        }
        Some("web_search") => vec![Step::Calls { tool: "web_search".to_owned(), with: text("/query") }],
        Some("error") => vec![Step::Note(text("/message"))],
        _ => Vec::new(),
    }
}
