//! What is written down of a sandbox, so that a restarted node knows what it had.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use warren_node_api::{Report, SandboxSpec};
use warren_types::{SandboxId, SandboxState};

const FORMAT: u32 = 1;
const FILE: &str = "record.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    pub(crate) id: SandboxId,
    pub(crate) spec: SandboxSpec,
    /// The template its disk is an overlay of; its disk means nothing over another.
    pub(crate) template_digest: String,
    pub(crate) state: SandboxState,
    pub(crate) generation: u64,
    pub(crate) reason: Option<String>,
    /// Its processes are being ended to hibernate it: whatever of them a restart finds is to be ended too.
    #[serde(default)]
    pub(crate) hibernating: bool,
    /// Present from before its processes start until after they have ended.
    pub(crate) machine: Option<MachineRecord>,
}

/// How to find the running part again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    /// Tells one boot of this host from another: process and device numbers mean nothing across them.
    pub(crate) boot_id: String,
    pub(crate) slot: u16,
    pub(crate) cpus: Vec<u32>,
    /// 0 until it is known.
    pub(crate) pid: i32,
    /// `major:minor` of the loop device of its disk.
    pub(crate) disk_device: String,
}

impl Record {
    pub(crate) fn new(id: SandboxId, spec: SandboxSpec, template_digest: String) -> Self {
        Self {
            format: FORMAT,
            id,
            spec,
            template_digest,
            state: SandboxState::Creating,
            generation: 1,
            reason: None,
            hibernating: false,
            machine: None,
        }
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            id: self.id.clone(),
            state: self.state,
            generation: self.generation,
            reason: self.reason.clone(),
        }
    }

    /// Moves to another state; each move is a new generation.
    pub(crate) fn become_state(&mut self, state: SandboxState, reason: Option<String>) {
        debug_assert!(self.state.can_become(state), "{} cannot become {state}", self.state);
        self.state = state;
        self.reason = reason;
        self.hibernating = false;
        self.generation += 1;
    }

    /// Replaces the file in one step: a reader sees the old record or this one. Synced a little later, with the whole
    /// volume.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        let unfinished = folder.join("record.unfinished");
        fs::write(&unfinished, serde_json::to_vec(self)?)?;
        fs::rename(unfinished, folder.join(FILE))
    }

    pub(crate) fn load(folder: &Path) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(&fs::read(folder.join(FILE))?)?;
        if record.format == FORMAT {
            Ok(record)
        } else {
            Err(io::Error::other("the record has an unknown format"))
        }
    }
}

/// This boot of the host.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
