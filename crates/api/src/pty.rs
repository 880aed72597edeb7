//! Terminals.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST …/pty`; may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PtyCreate {
    /// 1 to 1000; 80 when absent or 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub cols: Option<i64>,
    /// 1 to 1000; 24 when absent or 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub rows: Option<i64>,
    /// Program to run; `/bin/bash`, else `/bin/sh`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PtySession {
    #[serde(rename = "sessionID")]
    pub session_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
}

/// Body of `POST …/pty/{sessionID}/resize`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PtyResize {
    pub cols: i64,
    pub rows: i64,
}
