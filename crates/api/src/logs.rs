//! What a sandbox has logged: server-sent events whose data is one [`LogRow`] each, without event names.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rows of history when no limit is given.
pub const DEFAULT_LOG_ROWS: u32 = 1000;

/// One line that was logged, or the end of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRow {
    /// When it was observed.
    #[serde(rename = "_time")]
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// `var_log`, `exec_stdout`, `exec_stderr` or `agent`.
    pub source: String,
    /// Without its line break.
    pub line: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Of `var_log`: the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The command it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
    /// That command as it was asked for; cut where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The program and its arguments, where there are arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Marks the end of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}
