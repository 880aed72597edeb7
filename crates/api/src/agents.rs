//! Agent sessions: an agent that runs inside the sandbox, with events as JSON lines.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// The command of every agent session, as `POST …/exec` would name it.
pub const WRAPPER: &str = "claude-agent-wrapper";

/// Body of `POST …/agent`, which may be absent, and of `POST …/agent/{sessionID}/configure`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentOptions {
    /// The first thing to do; without it the session waits for `…/prompt`. Not for `…/configure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// As the agent names it; its own default when absent (`claude-sonnet-4-20250514` for Claude Code).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Tools that need no permission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_tools: Option<Vec<String>>,
    /// *Additive.* Tools the agent may not use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disallowed_tools: Option<Vec<String>>,
    /// `default`, `acceptEdits`, `bypassPermissions` (when absent), `plan`, `dontAsk` or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<String>,
    /// Turns of the model for one prompt, 1 to 100000; 50 when absent or 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_turns: Option<i64>,
    /// An absolute path that exists; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// MCP servers by name: `{command, args?, env?}`, or `{type: "http" | "sse", url, headers?}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub mcp_servers: Option<BTreeMap<String, Value>>,
    /// The conversation to go on with: a `claude_session_id` of an earlier session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// *Additive.* The session ends by itself once it has nothing left to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_when_idle: Option<bool>,
    /// *Additive.* `claude-code` (when absent), `codex` or `opencode`. Not for `…/configure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

/// A session as `POST …/agent` and `GET …/agent` show it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentSession {
    #[serde(rename = "sessionID")]
    pub session_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    pub running: bool,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// The agent's own name of the conversation, once there is one; what `resume` takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claude_session_id: Option<String>,
    /// *Additive.* Which agent it is.
    pub agent: String,
    /// *Additive.* Present once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Body of `POST …/agent/{sessionID}/prompt`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct AgentPrompt {
    pub text: Option<String>,
    /// *Additive.* The conversation to go on with instead of the session's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

/// *Additive.* Body of `POST …/agent/{sessionID}/permission`: the answer to a `permission_request` event.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPermission {
    /// Of the event.
    pub id: Option<String>,
    /// `allow` or `deny`.
    pub behavior: Option<String>,
    /// What the agent is told when it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the tool is to get instead of what the agent asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub updated_input: Option<serde_json::Map<String, Value>>,
}
