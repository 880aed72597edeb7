//! What a person sees of an agent that writes its work as lines of JSON: what it says, which tools it calls, what went wrong, and
//! what it cost.
//!
//! The lines come from a sandbox: they may be anything, of any length. What cannot be read is shown as it is, cut short, and nothing
//! of it steers the terminal.

mod claude_code;
mod codex;
mod open_code;

use serde::Serialize;
use serde_json::Value;

use crate::agent::launch::Lines;
use crate::output::printable;

/// Of a line that is read; what is over is thrown away as it comes.
const MAX_LINE: usize = 4 << 20;
/// Of a line that is shown.
const MAX_SHOWN: usize = 300;
/// Of what is kept of the agent's last words.
const MAX_KEPT: usize = 64 << 10;

pub(crate) struct Transcript {
    lines: Lines,
    totals: Totals,
    /// The beginning of a line that is not over, and how long it is already.
    begun: Vec<u8>,
    length: usize,
}

/// What it came to. Cost and tokens are the agent's own words.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Totals {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost_usd: Option<f64>,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) tool_calls: u64,
    /// What the agent said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// Why it did not finish, when it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// By which the agent can go on with this conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
}

/// A thing an agent did.
#[derive(Debug, PartialEq)]
enum Step {
    Says(String),
    Calls {
        tool: String,
        with: String,
    },
    /// What came of a call, when it is worth a line.
    Failed(String),
    /// About the work: retries, warnings.
    Note(String),
}

// === impl Transcript ===

impl Transcript {
    pub(crate) fn new(lines: Lines) -> Self {
        Self { lines, totals: Totals::default(), begun: Vec::new(), length: 0 }
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Takes what the agent wrote, in pieces as they come; lines to show.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut shown = Vec::new();
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            let room = MAX_LINE.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(part.get(..room).unwrap_or(part));
            self.length += part.len();
            if parts.peek().is_some() {
                shown.extend(self.end_line());
            }
        }
        shown
    }

    /// What is left when it has ended: a line without an end, and the sums.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        let mut shown = self.end_line();
        shown.extend(self.summary());
        shown
    }

    fn end_line(&mut self) -> Vec<String> {
        let line = std::mem::take(&mut self.begun);
        let length = std::mem::take(&mut self.length);
        if length > line.len() {
            return vec![format!("(a line of {length} bytes is left out)")];
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            return Vec::new();
        }
        let Some(steps) = self.steps(&text) else { return shown_text("", &text) };
        steps.into_iter().flat_map(|step| self.show(step)).collect()
    }

    /// None of a line that is not what the agent should write.
    fn steps(&mut self, line: &str) -> Option<Vec<Step>> {
        let read = match self.lines {
            Lines::Plain => return None,
            Lines::ClaudeCode => claude_code::steps,
            Lines::Codex => codex::steps,
            Lines::OpenCode => open_code::steps,
        };
        let event: Value = serde_json::from_str(line).ok()?;
        event.is_object().then(|| read(&event, &mut self.totals))
    }

    fn show(&mut self, step: Step) -> Vec<String> {
        match step {
            Step::Says(text) => {
                let shown = shown_text("", &text);
                self.totals.text = Some(cut(&text, MAX_KEPT));
                shown
            }
            Step::Calls { tool, with } => {
                self.totals.tool_calls += 1;
                let with = with.lines().next().unwrap_or_default();
                vec![cut(&printable(&format!("→ {tool}  {with}")), MAX_SHOWN).trim_end().to_owned()]
            }
            Step::Failed(why) => shown_text("  ✗ ", &why).into_iter().take(3).collect(),
            Step::Note(text) => shown_text("· ", &text).into_iter().take(3).collect(),
        }
    }

    fn summary(&self) -> Option<String> {
        let totals = &self.totals;
        if self.lines == Lines::Plain || (totals.input_tokens == 0 && totals.tool_calls == 0) {
            return None;
        }
        let cost = totals.cost_usd.map(|cost| format!(", ${cost:.4}")).unwrap_or_default();
        let calls = if totals.tool_calls == 1 { "call" } else { "calls" };
        Some(format!(
            "· {} tool {calls}, {} tokens in, {} out{cost}",
            totals.tool_calls, totals.input_tokens, totals.output_tokens
        ))
    }
}

/// The text line by line, each printable and cut.
fn shown_text(start: &str, text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| cut(&format!("{start}{}", printable(&line.replace('\t', "    "))), MAX_SHOWN)).collect()
}

fn cut(text: &str, at: usize) -> String {
    match text.char_indices().nth(at) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

// === what the formats have in common ===

fn text_at<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

fn number_at(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// What a person wants to know of a tool's input: the command, the path, else all of it.
fn input_of(input: &Value) -> String {
    let known = [
        "command",
        "cmd",
        "file_path",
        "filePath",
        "path",
        "pattern",
        "url",
        "query",
        "prompt",
        "description",
    ];
    let found = known.into_iter().find_map(|name| input.get(name).and_then(Value::as_str));
    found.map_or_else(|| if input.is_null() { String::new() } else { input.to_string() }, str::to_owned)
}

#[cfg(test)]
mod tests;
