//! Control plane to node.
//!
//! HTTP with JSON bodies; the same requests whether the node is in this process (its router is called directly) or
//! on another machine. Calls are idempotent `ensure_…` with ids chosen by the caller. Every answer about a sandbox
//! is a [`Report`] with a generation that grows with each change, so an old answer never overwrites a newer one.
//!
//! | method and path | request | answer |
//! | --- | --- | --- |
//! | `GET /v1/node` | | [`NodeInfo`] |
//! | `GET /v1/sandboxes` | | array of [`Report`] |
//! | `GET /v1/sandboxes/{id}` | | [`Report`] |
//! | `PUT /v1/sandboxes/{id}` | [`SandboxSpec`] | [`Report`], once it is running |
//! | `DELETE /v1/sandboxes/{id}` | | 204, once nothing of it is left; unknown ids too |
//! | `PUT /v1/sandboxes/{id}/timeout` | [`Timeout`] | [`Report`] |
//! | `POST /v1/sandboxes/{id}/wake` | | [`Report`] |
//! | `POST /v1/sandboxes/{id}/hibernate` | | [`Report`] |
//! | `POST /v1/sandboxes/{id}/logs` | [`warren_guest_api::logs::Query`] | as `POST /v1/logs` there; never wakes it, and ends after the history when it does not run |
//! | any `/v1/sandboxes/{id}/guest/{path}` | as in `warren-guest-api` `/v1/{path}` | as there; wakes the sandbox |
//! | `GET /v1/changes` | | JSON lines: a [`Report`] for every sandbox, then one for each change, for as long as the connection lives; blank lines keep it alive |

mod client;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warren_types::{SandboxId, SandboxState, Size};

pub use client::{NodeClient, error_of};

/// What a sandbox is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Name of a template the node has.
    pub template: String,
    pub size: Size,
    /// Environment of everything started in it.
    pub envs: BTreeMap<String, String>,
    /// Seconds without use after which it hibernates; 0 = never.
    pub timeout_seconds: u32,
    /// Whether it may open connections to the outside.
    pub network: bool,
}

/// What a sandbox is, as its node last saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub id: SandboxId,
    pub state: SandboxState,
    /// Grows with every change of this sandbox; kept across restarts of the node.
    pub generation: u64,
    /// Why it is in [`SandboxState::Error`], in words for its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// New idle time-out, in seconds; 0 = never. Restarts the timer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Timeout {
    pub timeout_seconds: u32,
}

/// What a node is and has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: String,
    pub version: String,
    /// `container` or `vm`.
    pub runtime: String,
    pub templates: Vec<String>,
    pub cpus: u32,
    pub memory_mb: u64,
    pub disk_free_mb: u64,
    pub sandboxes_running: u32,
}
