//! Files. Paths are taken inside the sandbox, relative ones under `/home/sandbox`.

use serde::{Deserialize, Serialize};

/// Longest path accepted, in bytes (the kernel's `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// Entries of a folder that can be listed; one with more is refused.
pub const MAX_LIST_ENTRIES: usize = 250_000;
/// Bytes their names may have together.
pub const MAX_LIST_BYTES: usize = 32 * 1024 * 1024;
/// Longest line of a listing: a path and a name whose every byte JSON writes as six.
pub const MAX_LIST_LINE_BYTES: usize = 64 * 1024;

/// One line of a folder listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    /// Absolute.
    pub path: String,
    pub is_dir: bool,
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Other,
}

/// What a path is; a symlink is described itself, unless `follow=true` asks for what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    pub name: String,
    pub path: String,
    pub kind: FileKind,
    pub size: u64,
    /// Permission bits, e.g. `0o644`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Milliseconds since the Unix epoch.
    pub modified_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

/// Renames, replacing what is at `to`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Move {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chmod {
    pub path: String,
    pub mode: u32,
}
