//! What is written down of a sandbox, so that a restarted node knows what it had.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use warren_node_api::{PatchProgress, Report, SandboxSpec};
use warren_runtime_vm::snapshot::Made;
use warren_types::{ExecId, SandboxId, SandboxState};

use super::{CURRENT, PREVIOUS};
use crate::checkpoint::manifest::Lineage;

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
    /// What was tried and did not work.
    #[serde(default)]
    pub(crate) warning: Option<String>,
    /// What it is on its way to, while its processes are being ended: a restart goes on from there.
    #[serde(default)]
    pub(crate) transition: Option<Transition>,
    /// The memory that goes with the disk; of a virtual machine that hibernates.
    #[serde(default)]
    pub(crate) suspended: Option<Suspended>,
    /// What its disk holds; while it hibernates, once that has been read.
    #[serde(default)]
    pub(crate) disk: Option<Kept>,
    /// What `previous.img` holds: the disk as it was before it last woke.
    #[serde(default)]
    pub(crate) previous: Option<Kept>,
    /// The memory that goes with `previous.img`.
    #[serde(default)]
    pub(crate) previous_suspended: Option<Suspended>,
    /// The checkpoint it came from.
    #[serde(default)]
    pub(crate) lineage: Option<Lineage>,
    /// Why the next patch failed.
    #[serde(default)]
    pub(crate) patch_error: Option<String>,
    /// The patch that is running.
    #[serde(default)]
    pub(crate) patch: Option<StartedPatch>,
    /// It has started, and its patches and start commands are not all done yet.
    #[serde(default)]
    pub(crate) settling: bool,
    /// Present from before its processes start until after they have ended.
    pub(crate) machine: Option<MachineRecord>,
}

/// Why the processes of a sandbox are being ended. Written down first: from then on there is no way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transition {
    /// To hibernate it.
    Hibernate,
    /// To start it again on the same disk.
    Restart,
    /// To start it again on the disk `next.img`, made over that template and with that lineage, and with that memory.
    Restore {
        template_digest: String,
        lineage: Option<Lineage>,
        #[serde(default)]
        suspended: Option<Suspended>,
    },
    /// To resume it from memory. Until it runs nothing is lost: disk and memory are kept as `previous` as well.
    Resume,
}

/// A virtual machine at rest, in the files `memory` and `state`; the disk beside them is of the same moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspended {
    pub(crate) made: Made,
    pub(crate) state_digest: String,
    /// Present once it has been read.
    pub(crate) memory_digest: Option<String>,
    /// When its processes began, in milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
}

/// A disk image as it was when nothing ran on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) digest: String,
    /// The sandbox's generation at that time.
    pub(crate) generation: u64,
    /// Milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartedPatch {
    pub(crate) sequence: u32,
    pub(crate) exec: ExecId,
    /// Milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
}

/// How to find the running part again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    /// Tells one boot of this host from another: process and device numbers mean nothing across them.
    pub(crate) boot_id: String,
    pub(crate) slot: u16,
    pub(crate) cpus: Vec<u32>,
    /// Name of its cgroup below the node's: the sandbox's id, followed by a generation where the processes before it may
    /// still be ending. It comes first wherever groups are looked for by id.
    #[serde(default)]
    pub(crate) cgroup: String,
    /// 0 until it is known.
    pub(crate) pid: i32,
    /// `major:minor` of the loop device of its disk.
    pub(crate) disk_device: String,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub(crate) since_ms: u64,
    /// Its processes are those from before.
    #[serde(default)]
    pub(crate) resumed: bool,
    /// What a virtual machine is made of.
    #[serde(default)]
    pub(crate) made: Option<Made>,
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
            warning: None,
            transition: None,
            suspended: None,
            disk: None,
            previous: None,
            previous_suspended: None,
            lineage: None,
            patch_error: None,
            patch: None,
            settling: false,
            machine: None,
        }
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            reason: self.reason.clone(),
            warning: self.warning.clone(),
            size: Some(self.spec.size),
            processes_since_ms: self
                .machine
                .as_ref()
                .filter(|_| self.state == SandboxState::Running)
                .map(|machine| machine.since_ms),
            memory_kept: match self.state {
                SandboxState::Running => self.machine.as_ref().is_some_and(|machine| machine.resumed),
                SandboxState::Hibernated => self.suspended.is_some(),
                SandboxState::Creating | SandboxState::Stopped | SandboxState::Error => false,
            },
            patches: PatchProgress {
                applied: self.lineage.as_ref().map_or(0, |lineage| lineage.patches_applied),
                error: self.patch_error.clone(),
            },
            ..Report::new(self.id.clone(), self.state, self.generation)
        }
    }

    /// Name of the cgroup its processes are in, or would be.
    pub(crate) fn cgroup(&self) -> &str {
        let named = self.machine.as_ref().map(|machine| machine.cgroup.as_str());
        named.filter(|name| !name.is_empty()).unwrap_or(self.id.as_str())
    }

    /// Puts disk and memory back as they were before a resumption that did not come to its end; blocks.
    pub(crate) fn undo_resume(&mut self, folder: &Path) -> io::Result<()> {
        PREVIOUS.share(folder, CURRENT, self.previous_suspended.is_some())?;
        self.disk = self.previous.clone();
        self.suspended = self.previous_suspended.clone();
        self.transition = None;
        Ok(())
    }

    /// Moves to another state; each move is a new generation.
    pub(crate) fn become_state(&mut self, state: SandboxState, reason: Option<String>) {
        debug_assert!(self.state.can_become(state), "{} cannot become {state}", self.state);
        self.state = state;
        self.reason = reason;
        self.settle();
    }

    /// Stays in its state, with other processes.
    pub(crate) fn begin_anew(&mut self) {
        debug_assert_eq!(self.state, SandboxState::Running);
        self.settle();
    }

    fn settle(&mut self) {
        self.warning = None;
        self.transition = None;
        self.generation += 1;
    }

    /// Something its owner is to know changed, and its state did not.
    pub(crate) fn note(&mut self) {
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
