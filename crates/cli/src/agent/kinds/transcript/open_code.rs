//! `opencode run --format json`.

use serde_json::Value;

use super::{Step, Totals, input_of, number_at, text_at};

pub(super) fn steps(event: &Value, totals: &mut Totals) -> Vec<Step> {
    let part = event.get("part").unwrap_or(&Value::Null);
    if totals.session.is_none() {
        totals.session = text_at(event, "/sessionID").map(str::to_owned);
    }
    match text_at(event, "/type") {
        Some("tool_use") => tool(part),
        Some("text") => text_at(part, "/text").map(|text| Step::Says(text.to_owned())).into_iter().collect(),
        Some("step_finish") => {
            let of_cache = number_at(part, "/tokens/cache/read") + number_at(part, "/tokens/cache/write");
            totals.input_tokens += number_at(part, "/tokens/input") + of_cache;
            totals.output_tokens += number_at(part, "/tokens/output");
            if let Some(cost) = part.get("cost").and_then(Value::as_f64) {
                totals.cost_usd = Some(totals.cost_usd.unwrap_or(0.0) + cost);
            }
            Vec::new()
        }
        Some("error") => {
            let why = text_at(event, "/error/data/message")
                .or_else(|| text_at(event, "/error/name"))
                .unwrap_or("it failed")
                .to_owned();
            totals.error = Some(why.clone());
            vec![Step::Failed(why)]
        }
        _ => Vec::new(),
    }
}

/// It is told when it is over.
fn tool(part: &Value) -> Vec<Step> {
    let state = part.get("state").unwrap_or(&Value::Null);
    let mut steps = vec![Step::Calls {
        tool: text_at(part, "/tool").unwrap_or("?").to_owned(),
        with: input_of(state.get("input").unwrap_or(&Value::Null)),
    }];
    let code = number_at(state, "/metadata/exit");
    if text_at(state, "/status") == Some("error") {
        steps.push(Step::Failed(text_at(state, "/error").unwrap_or("it failed").to_owned()));
    } else if code != 0 {
        steps.push(Step::Failed(format!(
            "exit code {code}: {}",
            text_at(state, "/output").unwrap_or_default()
        )));
    }
    steps
}
