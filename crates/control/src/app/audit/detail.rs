//! What is told of requests: enough to know what was done, bounded, and no value of a variable.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use warren_guest_api::exec::ExecStart;

/// Of a command with its arguments, and of any other text.
const MAX_TEXT_BYTES: usize = 4096;
/// Names of variables, and elements of other lists.
const MAX_LIST: usize = 64;
const MAX_NAME_BYTES: usize = 256;

/// Text that fits into a record, lists likewise.
pub(super) fn bounded(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text, MAX_TEXT_BYTES)),
        Value::Array(values) => {
            let more = values.len().saturating_sub(MAX_LIST);
            let mut kept: Vec<Value> = values
                .into_iter()
                .take(MAX_LIST)
                .map(|value| match value {
                    Value::String(text) => Value::String(cut(text, MAX_NAME_BYTES)),
                    other => other,
                })
                .collect();
            if more > 0 {
                kept.push(format!("… {more} more").into());
            }
            Value::Array(kept)
        }
        other => other,
    }
}

fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
    text
}

/// A command: what runs, where, and which variables it was given, without their values. What is too long is cut; a digest of
/// the whole then says which it was.
pub(crate) fn of_command(start: &ExecStart) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut left = MAX_TEXT_BYTES;
    let mut take = |text: &str| {
        let end = text.floor_char_boundary(left.min(text.len()));
        left -= end;
        (text[..end].to_owned(), end < text.len())
    };
    let (cmd, mut is_cut) = take(&start.cmd);
    facts.insert("cmd".to_owned(), cmd.into());
    let mut args = Vec::new();
    for arg in &start.args {
        if is_cut || args.len() >= 4 * MAX_LIST {
            is_cut = true;
            break;
        }
        let (arg, arg_is_cut) = take(arg);
        is_cut = arg_is_cut;
        args.push(Value::String(arg));
    }
    if !args.is_empty() {
        facts.insert("args".to_owned(), args.into());
    }
    if is_cut {
        let whole = json!([start.cmd, start.args]).to_string();
        facts.insert("cut".to_owned(), true.into());
        facts.insert("argvBytes".to_owned(), whole.len().into());
        facts.insert("argvSha256".to_owned(), warren_types::hex(&Sha256::digest(whole.as_bytes())).into());
    }
    if let Some(cwd) = &start.cwd {
        facts.insert("cwd".to_owned(), bounded(cwd.as_str().into()));
    }
    if !start.envs.is_empty() {
        let names: Vec<Value> = start.envs.keys().map(|name| name.as_str().into()).collect();
        facts.insert("envNames".to_owned(), bounded(names.into()));
    }
    if let Some(timeout) = start.timeout_ms {
        facts.insert("timeoutMs".to_owned(), timeout.into());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_without_values_and_within_bounds() {
        let start = ExecStart {
            cmd: "tool".into(),
            args: vec!["a".into(), "b c".into()],
            envs: [("TOKEN".to_owned(), "hunter2".to_owned())].into(),
            cwd: Some("/w".into()),
            ..ExecStart::default()
        };
        let facts = Value::Object(of_command(&start));
        assert_eq!(facts, json!({"cmd": "tool", "args": ["a", "b c"], "cwd": "/w", "envNames": ["TOKEN"]}));

        let long = ExecStart { cmd: "é".repeat(5000), args: vec!["x".into()], ..ExecStart::default() };
        let facts = of_command(&long);
        assert!(facts["cmd"].as_str().unwrap().len() <= MAX_TEXT_BYTES);
        let whole = json!([long.cmd, long.args]).to_string();
        assert_eq!(facts["argvSha256"], warren_types::hex(&Sha256::digest(whole.as_bytes())));
        assert_eq!((&facts["cut"], facts.get("args")), (&json!(true), None));
        let many = ExecStart { cmd: "x".into(), args: vec!["y".into(); 100_000], ..ExecStart::default() };
        assert!(Value::Object(of_command(&many)).to_string().len() < 3 * MAX_TEXT_BYTES);
        let names = bounded(vec!["n".repeat(9999); 1000].into());
        assert!(names.to_string().len() < 20_000, "{}", names.to_string().len());
    }
}
