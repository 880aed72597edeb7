//! What is written down of a sandbox, so that a restarted node knows what it had.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;
use warren_node_api::{PatchProgress, Report, SandboxSpec};
use warren_runtime_vm::snapshot::Made;
use warren_types::{ExecId, SandboxId, SandboxState};

use super::{CURRENT, PREVIOUS};
use crate::checkpoint::manifest::Lineage;

const FORMAT: u32 = 1;
pub(crate) const FILE: &str = "record.json";
/// The newest that has surely been brought to the drive.
const DURABLE_FILE: &str = "record.durable.json";
/// One that has stood for this long has been: the volume is synced half a second after each change.
const DURABLE_AFTER: Duration = Duration::from_secs(10);
/// More than a sandbox can have gone through before its record was brought to the drive: who has heard of them believes what
/// comes after them only.
const LOST_GENERATIONS: u64 = 10_000;
const WRITES_LOST: &str = "some of what it wrote could not be brought to its disk, because the node's volume was full; files \
    written at that time may be damaged: write them again, or restore a checkpoint";

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
    /// Some of what was written to its disk did not come there.
    #[serde(default)]
    pub(crate) writes_lost: bool,
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
    /// It has started, and its patches are not all done yet.
    #[serde(default)]
    pub(crate) settling: bool,
    /// Ids of the start commands that this start of it has begun, or is about to begin.
    #[serde(default)]
    pub(crate) begun: Vec<ExecId>,
    /// Present from before its processes start until after they have ended.
    pub(crate) machine: Option<MachineRecord>,
}

/// Why the processes of a sandbox are being ended. Written down first: from then on there is no way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a sandbox has at most one")]
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
        #[serde(default)]
        writes_lost: bool,
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
    /// Its guest did not come to write out what of its disk is in this memory alone.
    #[serde(default)]
    pub(crate) unwritten: bool,
}

impl Suspended {
    /// What is to be known of the disk by who goes on without this memory.
    pub(crate) fn lost_with_it(&self) -> &'static str {
        match self.unwritten {
            true => {
                "; what was written to its disk last may not be there, because its guest did not write it out in time"
            }
            false => "",
        }
    }
}

/// A disk image as it was when nothing ran on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) digest: String,
    /// The sandbox's generation at that time.
    pub(crate) generation: u64,
    /// Milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// How far the patches of the checkpoint it came from were in it; unknown of one that was kept by an older program.
    #[serde(default)]
    pub(crate) patches_applied: Option<u32>,
    /// The patch that was running.
    #[serde(default)]
    pub(crate) patch: Option<StartedPatch>,
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

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("there is none")]
    Absent,
    #[error("it cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it has format {found}, and this server knows {known}")]
    Foreign { found: u32, known: u32 },
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
            writes_lost: false,
            transition: None,
            suspended: None,
            disk: None,
            previous: None,
            previous_suspended: None,
            lineage: None,
            patch_error: None,
            patch: None,
            settling: false,
            begun: Vec::new(),
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

    /// Remembers that what was written to the disk is not all there. Nobody can tell which of it, so it is said until the disk
    /// is another one.
    pub(crate) fn lose_writes(&mut self) {
        self.writes_lost = true;
        self.warning = Some(WRITES_LOST.to_owned());
    }

    /// The same, told to whoever reads the log; once.
    pub(crate) fn note_lost_writes(&mut self, error: &io::Error) {
        if !self.writes_lost {
            warn!(id = %self.id, %error, "a sandbox has written what is not on its disk");
            self.lose_writes();
        }
    }

    fn settle(&mut self) {
        self.warning = self.writes_lost.then(|| WRITES_LOST.to_owned());
        self.transition = None;
        self.generation += 1;
    }

    /// Something its owner is to know changed, and its state did not.
    pub(crate) fn note(&mut self) {
        self.generation += 1;
    }

    /// Replaces the file in one step: a reader sees the old record or this one. Synced a little later, with the whole
    /// volume; should the host lose power before, the file can be empty, and the one that was there before counts again.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        self.save_with(folder, |_| Ok(()))
    }

    /// The same, and on the drive when this returns.
    pub(crate) fn save_durably(&self, folder: &Path) -> io::Result<()> {
        self.save_with(folder, File::sync_all)?;
        File::open(folder)?.sync_all()
    }

    fn save_with(&self, folder: &Path, bring: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let (unfinished, file) = (folder.join("record.unfinished"), folder.join(FILE));
        let mut new = File::create(&unfinished)?;
        new.write_all(&serde_json::to_vec(self)?)?;
        bring(&new)?;
        let age = |there: Metadata| there.modified().ok()?.elapsed().ok();
        if fs::metadata(&file).ok().and_then(age).is_some_and(|age| age > DURABLE_AFTER) {
            let durable = folder.join(DURABLE_FILE);
            let _ = fs::remove_file(&durable);
            let _ = fs::hard_link(&file, durable);
        }
        fs::rename(unfinished, file)
    }

    pub(crate) fn load(folder: &Path) -> Result<Self, RecordError> {
        match Self::read(&folder.join(FILE)) {
            Err(RecordError::Damaged(why)) => {
                let Ok(durable) = Self::read(&folder.join(DURABLE_FILE)) else {
                    return Err(RecordError::Damaged(why));
                };
                warn!(id = %durable.id, why, "the record of a sandbox is damaged; going on with the one before it");
                Ok(durable.of_another_time())
            }
            read => read,
        }
    }

    fn read(file: &Path) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged = |error: serde_json::Error| RecordError::Damaged(error.to_string());
        let json = fs::read(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RecordError::Absent,
            _ => RecordError::Unreadable(error),
        })?;
        let Head { format } = serde_json::from_slice(&json).map_err(damaged)?;
        if format != FORMAT {
            return Err(RecordError::Foreign { found: format, known: FORMAT });
        }
        serde_json::from_slice(&json).map_err(damaged)
    }

    /// What its files held then says nothing about what they hold now. The disk is that of a file system that keeps itself in
    /// order.
    fn of_another_time(self) -> Self {
        Self {
            transition: None,
            suspended: None,
            disk: None,
            previous: None,
            previous_suspended: None,
            patch: None,
            generation: self.generation + LOST_GENERATIONS,
            ..self
        }
    }
}

/// This boot of the host.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::SystemTime;
    use warren_types::{EgressPolicy, Isolation, Size};

    fn record() -> Record {
        let spec = SandboxSpec {
            template: "base".into(),
            isolation: Isolation::Container,
            size: Size::resolve(None, None, None).unwrap(),
            envs: BTreeMap::new(),
            timeout_seconds: 0,
            egress: EgressPolicy::default(),
            sealed: false,
            start_commands: Vec::new(),
            from_checkpoint: None,
            image: warren_node_api::ImageSettings::default(),
        };
        Record {
            state: SandboxState::Hibernated,
            ..Record::new(SandboxId::generate(), spec, "ab".repeat(32))
        }
    }

    /// As a loss of power leaves a file whose content was not on the drive yet.
    fn empty(folder: &Path) {
        File::create(folder.join(FILE)).unwrap();
    }

    fn make_older(folder: &Path) {
        let file = File::options().write(true).open(folder.join(FILE)).unwrap();
        file.set_modified(SystemTime::now() - DURABLE_AFTER * 2).unwrap();
    }

    #[test]
    fn a_record_that_a_loss_of_power_took_leaves_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let kept = Kept { digest: "d".into(), generation: 1, at_ms: 1, patches_applied: None, patch: None };
        let old = Record { disk: Some(kept), ..record() };
        old.save(folder).unwrap();
        make_older(folder);
        // Of several that follow each other at once, none may be on the drive.
        for generation in [2, 3] {
            Record { generation, ..old.clone() }.save(folder).unwrap();
        }
        assert_eq!(Record::load(folder).unwrap().generation, 3);
        empty(folder);
        let found = Record::load(folder).unwrap();
        assert!(
            found.id == old.id && found.generation > 3,
            "who has heard of the third believes what is later"
        );
        assert_eq!(found.disk, None, "what the disk held then is not what it must hold now");
    }

    #[test]
    fn what_cannot_be_read_is_told_apart_from_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(matches!(Record::load(folder), Err(RecordError::Absent)));
        // Something is there, and what it says may be known at another time.
        fs::create_dir(folder.join(FILE)).unwrap();
        assert!(matches!(Record::load(folder), Err(RecordError::Unreadable(_))));
        fs::remove_dir(folder.join(FILE)).unwrap();
        empty(folder);
        assert!(matches!(Record::load(folder), Err(RecordError::Damaged(_))));
        fs::write(folder.join(FILE), r#"{"format":9,"other":true}"#).unwrap();
        assert!(matches!(Record::load(folder), Err(RecordError::Foreign { found: 9, .. })));
    }
}
