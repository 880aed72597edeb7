//! From nothing, or from a disk that is kept, to a running sandbox: making it, waking it, and the gate that every use of it
//! passes.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tracing::{info, warn};
use warren_node_api::{CODE_CHECKPOINT_DAMAGED, CODE_DISK_DAMAGED, CODE_MEMORY_DAMAGED, Report, Wake};
use warren_types::{CheckpointId, Error, ErrorKind, Isolation, SandboxState};

use super::activity::Call;
use super::actor::{Actor, Answer};
use super::machine::{self, Fit, Ready, VmStart};
use super::record::{Kept, Suspended, Transition};
use super::results;
use super::stock::Prepared;
use super::{CURRENT, DISK, Files, PREVIOUS};
use crate::checkpoint::Whole;
use crate::checkpoint::manifest::Lineage;
use crate::disk::{self, digest};
use crate::guest::Guest;
use crate::registry::Host;

/// Bytes that must be free on the volume for a sandbox to be made or woken; beside the whole memory of a virtual machine, which
/// is written there as it is used.
const MIN_FREE_BYTES: u64 = 1 << 30;

/// What one that rests goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum With {
    /// Its memory too, where it has been kept.
    Memory,
    DiskAlone,
}

/// What of one that rests is not what was written.
#[derive(Debug, Clone, Copy)]
enum Damaged {
    Disk,
    Memory,
}

impl Actor {
    /// Makes the disk and starts the sandbox for the first time. Leaves nothing behind when that fails.
    pub(super) async fn make(&mut self) -> Result<(), Error> {
        let made = async {
            self.check_volume()?;
            fs::create_dir(&self.folder).map_err(|error| no_disk(&error))?;
            match self.record.spec.from_checkpoint.clone() {
                None => self.start_empty().await,
                Some(id) => self.start_fork(id).await,
            }
        };
        let result = made.await;
        if result.is_err() {
            self.remove_folder().await;
        }
        result
    }

    async fn start_fork(&mut self, id: CheckpointId) -> Result<(), Error> {
        let host = self.host.clone();
        let whole = match host.checkpoints.open_whole(&id).await {
            Ok(whole) => whole,
            Err(error) => {
                if error.code.as_deref() == Some(CODE_CHECKPOINT_DAMAGED) {
                    host.forget_forks(&id).await;
                }
                return Err(error);
            }
        };
        self.patching.owe(whole.patches.clone());
        self.record.template_digest.clone_from(&whole.manifest.template_digest);
        self.record.spec.isolation = whole.manifest.spec.isolation;
        // Only now it is known what it will be.
        self.check_volume()?;
        self.record.spec.template.clone_from(&whole.manifest.spec.template);
        if self.record.spec.image.is_empty() {
            self.record.spec.image.clone_from(&whole.manifest.spec.image);
        }
        let (own, wanted) = (whole.manifest.spec.size.disk_mb, self.record.spec.size.disk_mb);
        self.record.spec.size.disk_mb = wanted.max(own);
        self.record.lineage = Some(Lineage { checkpoint: id.clone(), patches_applied: 0 });
        self.record.writes_lost = whole.manifest.writes_lost;
        if wanted > own {
            return self.start_on_larger_disk(whole).await;
        }
        if self.record.spec.isolation == Isolation::Container {
            let _turn = host.turn().await?;
            if let Some(prepared) = Prepared::fork(&host, &id, &self.folder.join(DISK))? {
                return self.start_in(Ready::Root(prepared)).await;
            }
        }
        self.record.suspended = whole.suspended();
        if let Some(suspended) = &self.record.suspended
            && let Some(start) = VmStart::fork(&host, &self.record, &id, suspended).await
        {
            return self.start_in(Ready::Vm(start)).await;
        }
        let folder = self.folder.clone();
        let made = tokio::task::spawn_blocking(move || whole.share(&folder, CURRENT)).await;
        made.map_err(io::Error::other).flatten().map_err(|error| no_disk(&error))?;
        self.start().await
    }

    /// Starts a fork on a larger disk than its checkpoint has. A machine begins anew then: its memory knows a disk of the
    /// old size. It grows the file system itself when it begins, because what a machine wrote is not mounted outside of one.
    async fn start_on_larger_disk(&mut self, whole: Whole) -> Result<(), Error> {
        let host = self.host.clone();
        let (disk_mb, image) = (self.record.spec.size.disk_mb, self.folder.join(DISK));
        if self.record.spec.isolation == Isolation::Vm {
            let made = tokio::task::spawn_blocking(move || {
                let grows = disk::grows_while_mounted(&whole.image)?;
                disk::reflink_larger(&whole.image, disk_mb, &image).map(|()| grows)
            });
            let grows = made.await.map_err(io::Error::other).flatten().map_err(|error| no_disk(&error))?;
            if !grows {
                return Err(Error::conflict(
                    "what the virtual machine is made from has a disk of an older version of this server, which cannot be made \
                     larger; leave diskMB out, or build it anew",
                ));
            }
            return self.start().await;
        }
        let _turn = host.turn().await?;
        let make = async {
            let made = host.disks.make_larger(whole.image, disk_mb, image.clone()).await;
            made.map_err(|error| no_disk(&error))
        };
        let prepared = Prepared::on(&host, &self.record.template_digest, &image, make).await?;
        self.start_in(Ready::Root(prepared)).await
    }

    async fn start_empty(&mut self) -> Result<(), Error> {
        let host = self.host.clone();
        if self.record.spec.isolation == Isolation::Vm {
            let start = VmStart::fresh(&host, &self.record, &self.folder).await?;
            let started = self.start_in(Ready::Vm(start)).await;
            if started.is_ok() || !VmStart::was_of_damaged(&host, &self.record).await {
                return started;
            }
            let start = VmStart::fresh(&host, &self.record, &self.folder).await?;
            return self.start_in(Ready::Vm(start)).await;
        }
        let _turn = host.turn().await?;
        let (disk_mb, image) = (self.record.spec.size.disk_mb, self.folder.join(DISK));
        let template_digest = &self.record.template_digest;
        let prepared = if template_digest == host.disks.template() {
            Prepared::empty(&host, disk_mb, &image).await?
        } else {
            let make =
                async { host.disks.make(disk_mb, image.clone()).await.map_err(|error| no_disk(&error)) };
            Prepared::on(&host, template_digest, &image, make).await?
        };
        self.start_in(Ready::Root(prepared)).await
    }

    /// Starts it on its disk, and with its memory if there is one that can be gone on with. On failure nothing of it runs
    /// and its record says so.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        if !matches!(self.record.transition, Some(Transition::Restore { .. })) {
            self.wait_for_the_dying().await;
        }
        let host = self.host.clone();
        match self.record.spec.isolation {
            Isolation::Container => self.start_container(&host).await,
            Isolation::Vm => self.start_machine(&host).await,
        }
    }

    async fn start_container(&mut self, host: &Arc<Host>) -> Result<(), Error> {
        let _turn = host.turn().await?;
        let image = self.folder.join(DISK);
        let attach = async {
            host.disks.attach(image.clone()).await.map_err(|error| {
                Error::new(ErrorKind::SandboxFailed, format!("its disk cannot be used: {error}"))
            })
        };
        let prepared = Prepared::on(host, &self.record.template_digest, &image, attach).await?;
        self.start_in(Ready::Root(prepared)).await
    }

    async fn start_machine(&mut self, host: &Arc<Host>) -> Result<(), Error> {
        let Some(suspended) = self.record.suspended.clone() else {
            return self.start_in(Ready::Vm(VmStart::boot(host, &self.record).await?)).await;
        };
        match machine::fit(host, self.record.spec.size, &suspended) {
            Fit::Good => {
                let start = VmStart::resume(host, &self.record, &self.folder, suspended).await?;
                self.start_in(Ready::Vm(start)).await
            }
            Fit::Useless(reason) => {
                self.start_in(Ready::Vm(VmStart::boot(host, &self.record).await?)).await?;
                let warning = format!(
                    "it was started anew from its disk, because its memory could not be used: {reason}{}",
                    suspended.lost_with_it()
                );
                warn!(warning, "a sandbox has lost its processes");
                self.record.warning = Some(warning);
                self.note();
                Ok(())
            }
        }
    }

    async fn start_in(&mut self, ready: Ready) -> Result<(), Error> {
        self.record.begun.clear();
        self.record.settling = self.record.lineage.is_some() || !self.record.spec.start_commands.is_empty();
        if !ready.goes_on() {
            // A patch that was running has ended with all else.
            self.give_up_patch();
        }
        let machine =
            machine::start(&self.host, &mut self.record, &self.folder, ready, &self.session).await?;
        self.machine = Some(machine);
        // From here on it is what runs that counts.
        CURRENT.remove_state(&self.folder);
        self.record.suspended = None;
        self.activity.touch();
        let written = if self.record.state == SandboxState::Running {
            self.record.begin_anew();
            self.save().inspect(|()| self.publish())
        } else {
            self.become_state(SandboxState::Running, None)
        };
        if let Err(error) = written {
            self.end_machine().await;
            self.record.machine = None;
            return Err(error);
        }
        self.grow_to_its_memory().await;
        if let Some(machine) = &self.machine {
            results::hand_on(&machine.guest, &self.folder).await;
        }
        self.go_on_with_patches().await;
        Ok(())
    }

    /// Goes on where a start of the node found it.
    pub(super) async fn go_on(&mut self) {
        match self.record.state {
            // It was being started again when the node was killed.
            _ if self.record.transition.is_some() => self.start_again().await,
            SandboxState::Running => self.resume_patches().await,
            SandboxState::Hibernated if self.record.disk.is_none() => self.begin_measuring(),
            SandboxState::Hibernated
            | SandboxState::Creating
            | SandboxState::Stopped
            | SandboxState::Error => {}
        }
    }

    /// The gate that every use of a sandbox passes.
    pub(super) async fn let_in(&mut self, answer: Answer<(Guest, Call)>) {
        match self.ensure_running().await {
            Ok(guest) if !self.patching.is_running() => {
                let _ = answer.send(Ok((guest, self.activity.begin_call())));
            }
            Ok(_) => self.patching.wait_for_use(answer),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    pub(super) async fn wake(&mut self, wake: Wake, answer: Answer<Report>) {
        let awake = match (wake.previous_disk, self.record.state) {
            (true, _) => self.wake_with_previous_disk().await,
            (false, SandboxState::Error) => self.rise(With::Memory).await,
            (false, _) => self.ensure_running().await.map(drop),
        };
        self.activity.touch();
        match awake {
            Ok(()) if !self.patching.is_running() => self.answer_report(answer),
            Ok(()) => self.patching.wait(answer),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    pub(super) async fn ensure_running(&mut self) -> Result<Guest, Error> {
        match self.record.state {
            SandboxState::Running => {}
            SandboxState::Hibernated => self.rise(With::Memory).await?,
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        if self.look_for_room.is_some() {
            self.check_room().await?;
        }
        let Some(machine) = &self.machine else {
            return Err(Error::internal("a running sandbox has no processes"));
        };
        if !machine.guest.is_closed() {
            return Ok(machine.guest.clone());
        }
        self.check_room().await?;
        self.reconnect().await;
        match &self.machine {
            Some(machine) => Ok(machine.guest.clone()),
            None => Err(self.gone()),
        }
    }

    /// Starts one that does not run on the disk it has. When that is refused it is what it was.
    pub(super) async fn rise(&mut self, with: With) -> Result<(), Error> {
        self.check_volume()?;
        self.stop_measuring();
        self.check_rest(with).await?;
        self.start_from_rest(with).await?;
        info!(?with, "woken");
        Ok(())
    }

    /// Compares disk and memory with their digests, if they have any, and keeps them as they are before anything writes
    /// to them. Memory that is to be left behind may be damaged.
    async fn check_rest(&mut self, with: With) -> Result<(), Error> {
        let kept = self.record.disk.clone();
        if let Some(kept) = &kept
            && !self.holds_disk(CURRENT, kept).await?
        {
            return Err(self.refuse(Damaged::Disk).await);
        }
        if let Some(suspended) = self.record.suspended.clone()
            && !self.holds_memory(CURRENT, &suspended).await?
        {
            let needed = with == With::Memory
                && matches!(machine::fit(&self.host, self.record.spec.size, &suspended), Fit::Good);
            if needed {
                return Err(self.refuse(Damaged::Memory).await);
            }
            warn!("damaged memory is left behind by a start from the disk");
            // There is no way back to it either.
            self.record.suspended = None;
        }
        let suspended = self.record.suspended.clone();
        if kept.is_none() && suspended.is_none() {
            return Ok(());
        }
        let (folder, with_memory) = (self.folder.clone(), suspended.is_some());
        let shared = tokio::task::spawn_blocking(move || CURRENT.share(&folder, PREVIOUS, with_memory));
        match shared.await.map_err(io::Error::other).flatten() {
            Ok(()) => {
                self.record.previous = kept;
                self.record.previous_suspended = suspended;
                Ok(())
            }
            // Sleeping with nothing to fall back on is better than not waking, but not than losing what runs.
            Err(error) if with_memory => Err(Error::unavailable(format!(
                "the sandbox was not woken, because its memory could not be kept as it is: {error}"
            ))),
            Err(error) => {
                warn!(%error, "the disk could not be kept as it is before the sandbox wakes");
                Ok(())
            }
        }
    }

    async fn start_from_rest(&mut self, with: With) -> Result<(), Error> {
        // From here on it is written to, by the mount already: a node that is killed now must not expect the old digest. Memory
        // that is to be left behind is there until the sandbox runs without it.
        let (disk, suspended) = (self.record.disk.take(), self.record.suspended.clone());
        self.record.transition = suspended.as_ref().map(|_| Transition::Resume);
        if with == With::DiskAlone {
            self.record.suspended = None;
        }
        if let Err(error) = self.save() {
            (self.record.disk, self.record.suspended, self.record.transition) = (disk, suspended, None);
            return Err(error);
        }
        let started = self.start().await;
        if started.is_err() && self.record.state != SandboxState::Running {
            if self.record.transition == Some(Transition::Resume)
                && let Err(error) = self.record.undo_resume(&self.folder)
            {
                warn!(%error, "memory and disk could not be put back as they were before the sandbox woke");
            }
            let _ = self.save();
            if self.record.state == SandboxState::Hibernated && self.record.disk.is_none() {
                self.begin_measuring();
            }
        }
        started
    }

    async fn wake_with_previous_disk(&mut self) -> Result<(), Error> {
        if self.record.state != SandboxState::Hibernated {
            return Err(Error::invalid("only a hibernated sandbox can be woken with its previous disk"));
        }
        let Some(kept) = self.record.previous.clone() else {
            return Err(Error::invalid("this sandbox has no previous disk; it never woke before"));
        };
        let suspended = self.record.previous_suspended.clone();
        self.check_volume()?;
        self.stop_measuring();
        let refused = |message: &str, code| Err(Error::conflict(message).with_code(code));
        if !self.holds_disk(PREVIOUS, &kept).await? {
            return refused(
                "the previous disk is damaged as well; restore a checkpoint instead",
                CODE_DISK_DAMAGED,
            );
        }
        if let Some(suspended) = &suspended
            && !self.holds_memory(PREVIOUS, suspended).await?
        {
            return refused(
                "the memory that goes with the previous disk is damaged; reboot the sandbox to start it from its newest disk, or \
                 restore a checkpoint",
                CODE_MEMORY_DAMAGED,
            );
        }
        // A node that is killed on the way puts the previous ones in place as well, whether they have memory or not: the ones
        // in their place must not be measured and taken for good.
        let before = self.record.clone();
        let with_memory = suspended.is_some();
        self.record.suspended = suspended;
        self.record.disk = None;
        // Not what the newer one was in the middle of.
        self.record.patch = kept.patch.clone();
        if let (Some(lineage), Some(applied)) = (&mut self.record.lineage, kept.patches_applied) {
            lineage.patches_applied = applied;
        }
        self.record.transition = Some(Transition::Resume);
        let folder = self.folder.clone();
        let replaced = match self.save() {
            Ok(()) => {
                let share = move || PREVIOUS.share(&folder, CURRENT, with_memory);
                let shared = tokio::task::spawn_blocking(share).await.map_err(io::Error::other).flatten();
                shared.map_err(|error| {
                    Error::unavailable(format!("the previous disk could not be put in place: {error}"))
                })
            }
            Err(error) => Err(error),
        };
        if let Err(error) = replaced {
            self.record = before;
            let _ = self.save();
            return Err(error);
        }
        self.start_from_rest(With::Memory).await?;
        info!(generation = kept.generation, "woken with the previous disk");
        Ok(())
    }

    /// Whether a disk of this sandbox is what was written.
    async fn holds_disk(&self, files: Files, kept: &Kept) -> Result<bool, Error> {
        let (path, digest) = (self.folder.join(files.disk), kept.digest.clone());
        let verified = self.host.checkpoints.verified.clone();
        whether(move || verified.check(&File::open(path)?, &digest, &AtomicBool::new(false))).await
    }

    /// The same of memory and the state that goes with it. Memory that was not read yet has to be as long as it was.
    async fn holds_memory(&self, files: Files, suspended: &Suspended) -> Result<bool, Error> {
        let (folder, suspended) = (self.folder.clone(), suspended.clone());
        let verified = self.host.checkpoints.verified.clone();
        whether(move || {
            let memory = File::open(folder.join(files.memory))?;
            if memory.metadata()?.len() != suspended.made.hardware.memory_bytes()
                || digest::of_bytes(&fs::read(folder.join(files.state))?) != suspended.state_digest
            {
                return Ok(false);
            }
            match &suspended.memory_digest {
                Some(digest) => verified.check(&memory, digest, &AtomicBool::new(false)),
                None => Ok(true),
            }
        })
        .await
    }

    /// The generation before this one, if all of it is what was written.
    async fn whole_previous(&self) -> Option<&Kept> {
        let previous = self.record.previous.as_ref()?;
        let disk = self.holds_disk(PREVIOUS, previous).await.unwrap_or(false);
        let whole = disk
            && match &self.record.previous_suspended {
                Some(suspended) => self.holds_memory(PREVIOUS, suspended).await.unwrap_or(false),
                None => true,
            };
        whole.then_some(previous)
    }

    /// Says what is damaged, and what there is instead.
    async fn refuse(&mut self, damaged: Damaged) -> Error {
        let checkpoint = self.host.checkpoints.newest_good_of(&self.record.id);
        let offer = match (self.whole_previous().await, checkpoint) {
            (Some(previous), _) => format!(
                "the generation before it, {} ({}), is whole: wake the sandbox with \"disk\":\"previous\" to go on from \
                 that, or restore a checkpoint",
                previous.generation,
                ago(previous.at_ms)
            ),
            (None, Some(checkpoint)) => {
                format!("checkpoint {checkpoint} is its newest good one: restore that")
            }
            (None, None) => "there is no earlier generation and no checkpoint of it".to_owned(),
        };
        let when = match &self.record.disk {
            Some(kept) => format!(" (generation {}, {})", kept.generation, ago(kept.at_ms)),
            None => String::new(),
        };
        let lost = self.record.suspended.as_ref().map_or("", Suspended::lost_with_it);
        let (what, instead, code) = match damaged {
            Damaged::Disk => ("disk", String::new(), CODE_DISK_DAMAGED),
            Damaged::Memory => (
                "memory",
                format!(
                    "reboot it to start it from its disk alone, without what was in its memory{lost}; or: "
                ),
                CODE_MEMORY_DAMAGED,
            ),
        };
        let message = format!(
            "the sandbox was not started: its {what} is not what was written when it hibernated{when}; {instead}{offer}"
        );
        match damaged {
            Damaged::Disk => warn!(message, "a damaged disk was refused"),
            Damaged::Memory => warn!(message, "damaged memory was refused"),
        }
        if self.record.warning.as_ref() != Some(&message) {
            self.record.warning = Some(message.clone());
            self.note();
        }
        Error::conflict(message).with_code(code)
    }

    pub(super) fn check_volume(&self) -> Result<(), Error> {
        let free = self.host.disks.free_bytes();
        let memory = match self.record.spec.isolation {
            Isolation::Container => 0,
            Isolation::Vm => u64::from(self.record.spec.size.memory_mb) << 20,
        };
        if free >= MIN_FREE_BYTES + memory {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the node's volume is nearly full ({} MiB free, {} MiB needed); delete sandboxes or enlarge it",
            free >> 20,
            (MIN_FREE_BYTES + memory) >> 20
        )))
    }
}

/// Reads files on a thread; one that is not there holds nothing.
async fn whether(check: impl FnOnce() -> io::Result<bool> + Send + 'static) -> Result<bool, Error> {
    match tokio::task::spawn_blocking(check).await.map_err(io::Error::other).flatten() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        checked => {
            checked.map_err(|error| Error::unavailable(format!("the sandbox's disk cannot be read: {error}")))
        }
    }
}

fn no_disk(error: &io::Error) -> Error {
    Error::unavailable(format!("no disk could be made: {error}"))
}

/// How long ago that was, for people.
fn ago(at_ms: u64) -> String {
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    let seconds = then.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} seconds ago"),
        120..7200 => format!("{} minutes ago", seconds / 60),
        7200..172_800 => format!("{} hours ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
