//! Files. Paths are taken inside the sandbox, relative ones under `/home/sandbox`.

use serde::{Deserialize, Serialize};

/// Longest path accepted, in bytes (the kernel's `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// Entries of a folder that can be listed; one with more is refused.
pub const MAX_LIST_ENTRIES: usize = 250_000;
/// Bytes their names may have together.
pub const MAX_LIST_BYTES: usize = 32 * 1024 * 1024;
/// Longest line of a listing: a path and a name whose every byte JSON writes as six, and the path encoded.
pub const MAX_LIST_LINE_BYTES: usize = 64 * 1024;

/// One line of a folder listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    /// Absolute.
    pub path: String,
    /// The path's bytes, percent-encoded, when it is not UTF-8; what is not is replaced in the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_path: Option<String>,
    pub is_dir: bool,
    pub size: u64,
}

/// Percent-encodes a path for a query, so that any reader of queries gets it back.
#[must_use]
pub fn encoded_path(path: &[u8]) -> String {
    use std::fmt::Write;
    path.iter().fold(String::with_capacity(path.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(*byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String takes everything"),
        }
        encoded
    })
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
    /// As of an [`Entry`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_path: Option<String>,
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
