//! Commands. The agent keeps each command's output as a log addressed by byte offset, over stdout and stderr
//! together in the order in which they were read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warren_types::ExecId;

/// Output a client gets back when it attaches without an offset, in bytes over both streams.
pub const REPLAY_BYTES: u64 = 1024 * 1024;
/// Output kept of one command. A reader that is attached holds the command back rather than lose bytes;
/// with no reader the oldest bytes go first and [`Exec::log_start`] says so.
pub const LOG_BYTES: u64 = 256 * 1024 * 1024;
/// How long a finished command stays known, in seconds.
pub const RETENTION_SECONDS: u64 = 600;
/// Most that an agent tells the one after it of what commands have come to, in bytes.
pub const KEPT_BYTES: usize = 16 * 1024 * 1024;
/// Exit code of a command that was ended by its own time limit.
pub const EXIT_TIMED_OUT: i32 = -1;

/// Starts a command.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecStart {
    pub cmd: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Must exist; where the sandbox's commands start when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// How `cmd` is to be read when `args` is empty.
    #[serde(default)]
    pub shell: ShellUse,
    /// Ends the command and all it started after this many milliseconds; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Ends the command when its last client has been gone for this long; one that nobody has attached to yet goes on.
    /// Never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_run_after_disconnect_ms: Option<u64>,
    /// Whether standard input is a pipe that clients feed, or empty from the start.
    #[serde(default)]
    pub stdin: bool,
    /// Run by root of the sandbox instead of its user; for what builds an image.
    #[serde(default)]
    pub as_root: bool,
    /// Nothing of its output is written to the sandbox's disk, neither its own log nor rows of the sandbox's: who is attached gets
    /// all of it, others what memory has. For what builds an image, which that would be a part of.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unkept: bool,
    /// Its id, where the caller has chosen one. A command that is known under it is answered as it stands, and not started
    /// again. From version 3 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ExecId>,
    /// It is started once for all: when it has been forgotten it is gone, and still not started again. The agent remembers each
    /// of these ids for as long as it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
}

/// How a `cmd` without `args` is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShellUse {
    /// As `/bin/sh -c cmd`, always.
    #[default]
    Always,
    /// Directly, unless it has blanks or shell characters and names no executable.
    WhenNeeded,
}

/// A command, running or finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub id: ExecId,
    pub cmd: String,
    pub args: Vec<String>,
    pub running: bool,
    /// Present once it has ended: its own code, 128 + n after signal n, [`EXIT_TIMED_OUT`] after its time limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    pub attached_clients: u32,
    /// Offset of the first byte still kept; above 0 once older output was dropped.
    pub log_start: u64,
    /// Offset just past the last byte so far.
    pub log_end: u64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub reason: ExitReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It ended by itself.
    Exited,
    /// A signal ended it.
    Signalled,
    /// Its time limit ended it.
    TimedOut,
    /// Its last client left and the time it was given after that has passed.
    Abandoned,
}

/// Sends a signal: 9 to everything the command started, any other to its process group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kill {
    pub signal: i32,
}
