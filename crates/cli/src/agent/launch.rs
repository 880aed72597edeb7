//! What has to be known of an agent to run it in a sandbox.

use std::collections::BTreeMap;

/// A program that works on a tree, and what it needs there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Launch {
    /// Steps of an image that install it (docs/images.md); none when the image has it.
    pub install: Vec<serde_json::Value>,
    /// Program and arguments. The prompt is among them, unless it goes to standard input.
    pub argv: Vec<String>,
    pub prompt_on_stdin: Option<String>,
    /// Plain variables; keys of models are not among them.
    pub envs: BTreeMap<String, String>,
    /// Keys that stay outside: sealed, and put in on the way to their hosts.
    pub keys: Vec<ModelKey>,
    /// It draws on a terminal, rather than writing lines.
    pub interactive: bool,
    /// How the lines it writes are shown.
    pub lines: Lines,
}

/// The key of a model's provider.
#[derive(Debug, Clone)]
pub(crate) struct ModelKey {
    /// Variable it is in, on the user's machine and, sealed, in the sandbox.
    pub env: String,
    pub hosts: Vec<String>,
}

/// Of what kind the lines on standard output are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Lines {
    /// As they are.
    #[default]
    Plain,
    /// JSON of Claude Code (`--output-format stream-json`).
    ClaudeCode,
    /// JSON of `codex exec --json`.
    Codex,
    /// JSON of `opencode run --format json`.
    OpenCode,
}
