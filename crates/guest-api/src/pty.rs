//! Terminals.

use serde::{Deserialize, Serialize};
use warren_types::PtyId;

/// Output a client gets back when it attaches, in bytes.
pub const SCROLLBACK_BYTES: usize = 256 * 1024;
pub const DEFAULT_COLS: u16 = 80;
pub const DEFAULT_ROWS: u16 = 24;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PtyStart {
    #[serde(default)]
    pub cols: Option<u16>,
    #[serde(default)]
    pub rows: Option<u16>,
    /// Program to run; `/bin/bash`, else `/bin/sh`, when absent.
    #[serde(default)]
    pub shell: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    pub id: PtyId,
    pub cols: u16,
    pub rows: u16,
    pub started_at_ms: u64,
    pub attached_clients: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resize {
    pub cols: u16,
    pub rows: u16,
}
