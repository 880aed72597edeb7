//! Checkpoints, as their node knows them.

use serde::{Deserialize, Serialize};
use warren_types::{CheckpointId, SandboxId};

use crate::SandboxSpec;

/// Of what a checkpoint is to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointCreate {
    pub sandbox_id: SandboxId,
    /// Without memory and processes, where the sandbox's isolation could hold them.
    #[serde(default)]
    pub disk_only: bool,
}

/// A checkpoint with the disk of another and a sandbox's settings of its own. Both share their blocks; either can be
/// removed without the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointCopy {
    /// Must be ready. Only its disk is taken.
    pub checkpoint_id: CheckpointId,
    /// What sandboxes made from the copy are to be. Its template and isolation are those of the original.
    pub spec: SandboxSpec,
}

/// Where a checkpoint is in its life.
///
/// ```text
///   Processing ──▶ Ready ──▶ Failed (its content no longer is what was written)
///        └───────▶ Failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointState {
    Processing,
    /// Whole, checked and on the drive.
    Ready,
    Failed,
}

/// What of a sandbox a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    Disk,
    /// The disk, the memory and every process.
    Memory,
}

/// How the disk was when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Everything stood still and all that had been written was there.
    Quiesced,
    /// The sandbox did not come to rest in time: as after a loss of power. What was written before the checkpoint was
    /// asked for is there, unless the guest of a virtual machine does not come to write it out and its memory is not wanted;
    /// what was being written may be there in part.
    Crash,
}

/// What a checkpoint is, as its node last saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    pub checkpoint_id: CheckpointId,
    pub state: CheckpointState,
    /// Grows with every change of this checkpoint.
    pub generation: u64,
    /// Absent when the manifest cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<CheckpointOrigin>,
    /// The state it holds was taken; what is written from then on is not in it.
    pub captured: bool,
    /// Absent until it is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// How long the sandbox stood still, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    pub holds: Holds,
    /// Bytes of data in it; 0 until it is ready.
    pub size_bytes: u64,
    /// Sequence numbers of the patches its node has for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<u32>,
    /// Why it is in [`CheckpointState::Failed`], in words for its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a checkpoint was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointOrigin {
    pub sandbox_id: SandboxId,
    /// What the sandbox was meant to be at that moment.
    pub spec: SandboxSpec,
}

/// A script for every sandbox made from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// From 1; gaps are what was deleted.
    pub sequence: u32,
    pub script: String,
}

/// One run of a patch in one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchRun {
    pub sequence: u32,
    /// Absent when it never got to run, or its end is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Both streams, the newest part of them when there was more than fits.
    pub stdout: String,
    pub stderr: String,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which checkpoint a sandbox is to go back to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restore {
    pub checkpoint_id: CheckpointId,
}
