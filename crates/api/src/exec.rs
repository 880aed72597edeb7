//! Commands.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of the routes that start a command.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecCreate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Must exist; `/home/sandbox` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Seconds. One-shot: 60 when absent or 0. Session: none when absent or 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<i64>,
    /// Sessions: seconds it may go on after its last client has left; absent or 0 = for ever. One that nobody has attached to yet goes on.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_run_after_disconnect: Option<i64>,
}

/// Answer of `POST …/exec/run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// The command's own code; 128 + n after signal n; -1 after its time limit.
    pub exit_code: i32,
    /// Whether older output is missing: a command wrote more than is kept of it. Standard error ends with a line that says how much.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    pub stdout: String,
    pub stderr: String,
}

/// 202 answer of `POST …/exec/run-async`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecHandle {
    pub exec_id: String,
    pub running: bool,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
}

/// Answer of `GET …/exec/{execId}/result`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecProgress {
    pub running: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Output so far, at most the newest 1 MiB over both streams.
    pub stdout: String,
    pub stderr: String,
    /// Whether older output is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_ms: Option<u64>,
}

/// A command as `POST …/exec` and `GET …/exec` show it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecSession {
    #[serde(rename = "sessionID")]
    pub session_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    pub command: String,
    pub args: Vec<String>,
    pub running: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    pub attached_clients: u32,
}

/// Body of `POST …/exec/{sessionID}/kill`; may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ExecKill {
    /// Signal number; 9 when absent or 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub signal: Option<i64>,
}
