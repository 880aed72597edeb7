//! How much of an image is taken.

use std::time::Duration;

/// What an image may have at most. Whatever is beyond is refused with a sentence that names the limit.
#[derive(Debug, Clone)]
pub struct Limits {
    pub layers: usize,
    /// One layer as it is stored, in bytes; a member of an archive likewise.
    pub blob_bytes: u64,
    /// All layers as they are stored; an archive as a whole.
    pub stored_bytes: u64,
    /// All layers with their compression undone.
    pub unpacked_bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    pub manifest_bytes: u64,
    pub config_bytes: u64,
    /// Names in one path, links followed.
    pub path_depth: usize,
    pub path_bytes: usize,
    /// How long a registry, or who sends an archive, may send nothing.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 128,
            blob_bytes: 16 << 30,
            stored_bytes: 20 << 30,
            unpacked_bytes: 20 << 30,
            entries: 2_000_000,
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            path_depth: 256,
            path_bytes: 4000,
            stall: Duration::from_secs(30),
        }
    }
}

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is being done, in words.
    pub message: String,
    /// Bytes of the image, as they are stored, that are done with.
    pub done_bytes: u64,
    pub total_bytes: Option<u64>,
}

/// A step for each so many bytes, so that a fast import does not drown in reports.
pub(crate) const STEP_BYTES: u64 = 4 << 20;
