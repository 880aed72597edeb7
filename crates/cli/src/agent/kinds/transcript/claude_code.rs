//! `claude --output-format stream-json`.

use serde_json::Value;

use super::{Step, Totals, input_of, number_at, text_at};

pub(super) fn steps(event: &Value, totals: &mut Totals) -> Vec<Step> {
    match text_at(event, "/type") {
        Some("system") => system(event, totals),
        Some("assistant") => parts(event).filter_map(said).collect(),
        Some("user") => parts(event).filter_map(failed).collect(),
        Some("result") => result(event, totals),
        _ => Vec::new(),
    }
}

fn parts(event: &Value) -> impl Iterator<Item = &Value> {
    event.pointer("/message/content").and_then(Value::as_array).into_iter().flatten()
}

fn system(event: &Value, totals: &mut Totals) -> Vec<Step> {
    match text_at(event, "/subtype") {
        Some("init") => {
            totals.session = text_at(event, "/session_id").map(str::to_owned);
            let model = text_at(event, "/model").unwrap_or("a model it does not name");
            vec![Step::Note(format!("Claude Code with {model}"))]
        }
        Some("api_retry") => {
            let why = text_at(event, "/error").unwrap_or("the model does not answer");
            vec![Step::Note(format!("asks the model again ({}): {why}", number_at(event, "/attempt")))]
        }
        _ => Vec::new(),
    }
}

fn said(part: &Value) -> Option<Step> {
    match text_at(part, "/type")? {
        "text" => Some(Step::Says(text_at(part, "/text")?.to_owned())),
        "tool_use" => Some(Step::Calls {
            tool: text_at(part, "/name")?.to_owned(),
            with: input_of(part.get("input").unwrap_or(&Value::Null)),
        }),
        _ => None,
    }
}

fn failed(part: &Value) -> Option<Step> {
    if part.get("is_error").and_then(Value::as_bool) != Some(true) {
        return None;
    }
    let content = part.get("content")?;
    let text = content.as_str().or_else(|| text_at(content, "/0/text")).unwrap_or("it failed");
    Some(Step::Failed(text.to_owned()))
}

fn result(event: &Value, totals: &mut Totals) -> Vec<Step> {
    totals.cost_usd = event.get("total_cost_usd").and_then(Value::as_f64);
    let of_cache = number_at(event, "/usage/cache_creation_input_tokens")
        + number_at(event, "/usage/cache_read_input_tokens");
    totals.input_tokens = number_at(event, "/usage/input_tokens") + of_cache;
    totals.output_tokens = number_at(event, "/usage/output_tokens");
    let is_error = event.get("is_error").and_then(Value::as_bool) == Some(true);
    let subtype = text_at(event, "/subtype").unwrap_or("success");
    if !is_error && subtype == "success" {
        return Vec::new();
    }
    let why = text_at(event, "/result").or_else(|| text_at(event, "/errors/0")).unwrap_or(subtype).to_owned();
    totals.error = Some(why.clone());
    vec![Step::Failed(why)]
}
