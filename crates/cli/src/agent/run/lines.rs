//! What a program without a terminal writes, as it is shown.
//!
//! Lines of JSON become what a person wants to know of them; what is no line of the kind that was promised is shown as it is. The
//! cost that an agent reports is noted on the way.

use std::io::{Error, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use serde_json::{Value, json};
use tokio::io::AsyncWrite;

use super::super::launch::Lines;
use crate::output::printable;

/// A line that is longer is shown in parts, as it is.
const MAX_LINE: usize = 8 << 20;
/// What is shown of one thing an agent did.
const SHOWN: usize = 200;

/// What was learnt from the lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// In dollars.
    pub(crate) cost: Option<f64>,
    /// The last thing that happened, in one line.
    pub(crate) last: String,
}

#[derive(Debug, Clone)]
pub(crate) enum To {
    Stdout,
    Stderr,
    /// One JSON object a line; `task` is a name for whose it is.
    Json {
        stream: &'static str,
        task: Option<String>,
    },
    File(Arc<Mutex<std::fs::File>>),
}

pub(crate) struct LineWriter {
    lines: Lines,
    to: To,
    buffer: Vec<u8>,
    told: Arc<Mutex<Told>>,
}

impl LineWriter {
    pub(crate) fn new(lines: Lines, to: To, told: &Arc<Mutex<Told>>) -> Self {
        Self { lines, to, buffer: Vec::new(), told: Arc::clone(told) }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.lines == Lines::Plain && matches!(self.to, To::Stdout | To::Stderr) {
            return write(&self.to, bytes);
        }
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.line(&line)?;
        }
        if self.buffer.len() > MAX_LINE {
            let part = std::mem::take(&mut self.buffer);
            self.line(&part)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Error> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(['\n', '\r']);
        let value = (self.lines != Lines::Plain).then(|| serde_json::from_str::<Value>(text).ok()).flatten();
        let shown = value.as_ref().map(|value| shown(self.lines, value));
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(cost) = value.as_ref().and_then(|value| cost(self.lines, value)) {
                told.cost =
                    Some(cost + told.cost.filter(|_| self.lines == Lines::OpenCode).unwrap_or_default());
            }
            let last = match &shown {
                Some(shown) => shown.as_deref().and_then(|text| text.lines().last()),
                None => Some(text),
            };
            if let Some(last) = last.map(str::trim).filter(|last| !last.is_empty()) {
                told.last = printable(&short(last)).into_owned();
            }
        }
        match &self.to {
            To::Json { stream, task } => {
                let mut event = json!({"type": "output", "stream": stream});
                match value {
                    Some(value) => event["event"] = value,
                    None => event["text"] = Value::String(String::from_utf8_lossy(line).into_owned()),
                }
                if let Some(task) = task {
                    event["task"] = Value::String(task.clone());
                }
                write(&self.to, format!("{event}\n").as_bytes())
            }
            To::File(_) => write(&self.to, line),
            To::Stdout | To::Stderr => match shown {
                Some(None) => Ok(()),
                Some(Some(text)) => {
                    let lines: Vec<_> = text
                        .lines()
                        .map(|line| line.split('\t').map(printable).collect::<Vec<_>>().join("    "))
                        .collect();
                    write(&self.to, format!("{}\n", lines.join("\n")).as_bytes())
                }
                None => write(&self.to, line),
            },
        }
    }
}

impl Drop for LineWriter {
    /// What ended without a line end.
    fn drop(&mut self) {
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            let _ = self.line(&rest);
        }
    }
}

/// Writing to a terminal or a file waits as a whole; so it does here.
impl AsyncWrite for LineWriter {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        Poll::Ready(self.take(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }
}

fn write(to: &To, bytes: &[u8]) -> Result<(), Error> {
    match to {
        To::Stdout | To::Json { .. } => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        To::Stderr => std::io::stderr().lock().write_all(bytes),
        To::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes),
    }
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn text_at<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// What a person sees of an event; none of those that only concern the program.
fn shown(lines: Lines, event: &Value) -> Option<String> {
    let kind = text_at(event, "/type").unwrap_or_default();
    match (lines, kind) {
        (Lines::ClaudeCode, "assistant") => {
            let parts = event.pointer("/message/content")?.as_array()?;
            let shown: Vec<String> = parts
                .iter()
                .filter_map(|part| match text_at(part, "/type")? {
                    "text" => text_at(part, "/text").map(str::to_owned),
                    "tool_use" => {
                        let input = part.get("input").map(Value::to_string).unwrap_or_default();
                        Some(format!("→ {} {}", text_at(part, "/name")?, short(&input)))
                    }
                    _ => None,
                })
                .collect();
            (!shown.is_empty()).then(|| shown.join("\n"))
        }
        (Lines::ClaudeCode, "result") if event["is_error"] == Value::Bool(true) => Some(format!(
            "error: {}",
            text_at(event, "/result").or(text_at(event, "/subtype")).unwrap_or("unknown")
        )),
        (Lines::Codex, "item.completed") => match text_at(event, "/item/type")? {
            "agent_message" => text_at(event, "/item/text").map(str::to_owned),
            "command_execution" => {
                text_at(event, "/item/command").map(|command| format!("→ {}", short(command)))
            }
            "file_change" => event
                .pointer("/item/changes")
                .map(|changes| format!("→ changed {}", short(&changes.to_string()))),
            _ => None,
        },
        (Lines::Codex, "turn.failed" | "error") => Some(format!(
            "error: {}",
            text_at(event, "/error/message").or(text_at(event, "/message")).unwrap_or("unknown")
        )),
        (Lines::OpenCode, "text") => text_at(event, "/part/text").map(str::to_owned),
        (Lines::OpenCode, "tool_use") => {
            let title = text_at(event, "/part/state/title").unwrap_or_default();
            Some(format!("→ {} {}", text_at(event, "/part/tool")?, short(title)))
        }
        (Lines::OpenCode, "error") => Some(format!("error: {}", short(&event["error"].to_string()))),
        _ => None,
    }
}

/// In dollars: of the whole session, or for OpenCode of one step.
fn cost(lines: Lines, event: &Value) -> Option<f64> {
    match (lines, text_at(event, "/type")?) {
        (Lines::ClaudeCode, "result") => event["total_cost_usd"].as_f64(),
        (Lines::OpenCode, "step_finish") => event.pointer("/part/cost")?.as_f64(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_lines_and_costs() {
        let event = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let claude = event(
            r#"{"type":"assistant","message":{"content":[{"type":"text","text":"hi"},{"type":"tool_use","name":"Bash","input":{"command":"ls"}}]}}"#,
        );
        assert_eq!(shown(Lines::ClaudeCode, &claude).unwrap(), "hi\n→ Bash {\"command\":\"ls\"}");
        let result = event(r#"{"type":"result","total_cost_usd":0.25,"result":"hi"}"#);
        assert_eq!((shown(Lines::ClaudeCode, &result), cost(Lines::ClaudeCode, &result)), (None, Some(0.25)));
        let codex = event(r#"{"type":"item.completed","item":{"type":"agent_message","text":"done"}}"#);
        assert_eq!(shown(Lines::Codex, &codex).unwrap(), "done");
        let open = event(r#"{"type":"text","part":{"text":"done"}}"#);
        assert_eq!(shown(Lines::OpenCode, &open).unwrap(), "done");
        for garbage in [
            "{}",
            "[]",
            "1",
            r#"{"type":"assistant"}"#,
            r#"{"type":"assistant","message":{"content":[1,{}]}}"#,
        ] {
            assert_eq!(shown(Lines::ClaudeCode, &event(garbage)), None, "{garbage}");
        }
    }

    #[test]
    fn lines_are_never_cut_by_pieces() {
        let told = Arc::default();
        let file = tempfile::tempfile().unwrap();
        let to = To::File(Arc::new(Mutex::new(file.try_clone().unwrap())));
        let mut writer = LineWriter::new(Lines::ClaudeCode, to, &told);
        for piece in [&b"{\"type\":\"res"[..], b"ult\",\"total_cost_usd\":1.5}\npla", b"in"] {
            writer.take(piece).unwrap();
        }
        drop(writer);
        let told = told.lock().unwrap();
        assert_eq!((told.cost, told.last.as_str()), (Some(1.5), "plain"));
    }
}
