//! Taking a sandbox for a checkpoint: its disk, and the memory of a virtual machine with it.
//!
//! A running one first writes out what it has in memory while it goes on; then the actor, which nobody else can ask for
//! anything meanwhile, has the rest written and the image shared while everything inside stands still. That pause depends
//! on what was written in the last moment, not on how much there is.

use std::fs::File;
use std::io;
use std::time::Duration;

use warren_node_api::{Consistency, SandboxSpec};
use warren_types::{Error, Isolation, SandboxState};

use super::actor::{Actor, Handle};
use super::machine::{Target, Unwritten};
use super::record::Suspended;
use super::{DISK, MEMORY, STATE};
use crate::checkpoint::manifest::Lineage;
use crate::disk::{self, digest};

/// Rounds of writing out before the pause; each leaves what was written during it. How long the guest of a machine gets for its
/// part of each: it goes on meanwhile, and may be slow on a busy host. Together less than whoever asked waits for the capture.
const ROUNDS: [Duration; 2] = [Duration::from_secs(7), Duration::from_secs(2)];
/// The first of them when the disk is taken alone: what is not written out by then is not in it, and nobody is held up by
/// waiting for it. Whoever asked may hear before that it is under way.
const PATIENCE_FOR_DISK: Duration = Duration::from_secs(30);

/// A disk, and what it was the disk of.
pub(crate) struct Taken {
    pub(crate) spec: SandboxSpec,
    pub(crate) template_digest: String,
    pub(crate) lineage: Option<Lineage>,
    /// Some of what was written to it did not come there.
    pub(crate) writes_lost: bool,
    pub(crate) consistency: Consistency,
    /// Microseconds; absent when it was not running.
    pub(crate) pause_us: Option<u64>,
    /// What the disk must turn out to hold, if that is known.
    pub(crate) digest: Option<String>,
    /// The memory that goes with it.
    pub(crate) suspended: Option<Suspended>,
}

impl Handle {
    /// Makes the target the same as the sandbox at one moment between now and the answer.
    pub(crate) async fn capture(&self, target: Target) -> Result<Taken, Error> {
        let mut rounds = ROUNDS;
        if target.disk_only {
            rounds[0] = PATIENCE_FOR_DISK;
        }
        let mut unwritten_by_guest = false;
        for patience in rounds {
            let processes_since_ms = self.latest().processes_since_ms;
            let Some(unwritten) = self.unwritten().await? else { break };
            unwritten_by_guest = !unwritten.ask_guest(patience).await;
            if let Err(error) = unwritten.write_out_on_a_thread().await {
                // The kernel tells that once, so whoever asks after this would hear that all is well.
                self.not_written(processes_since_ms).await;
                return Err(error);
            }
        }
        let mut taken = self.take(target).await?;
        if let Some(suspended) = &mut taken.suspended {
            // Of one that sleeps it is known.
            suspended.unwritten |= unwritten_by_guest;
        }
        Ok(taken)
    }
}

impl Unwritten {
    pub(super) async fn write_out_on_a_thread(self) -> Result<(), Error> {
        let written = tokio::task::spawn_blocking(move || self.write_out()).await;
        written.map_err(io::Error::other).flatten().map_err(|error| {
            Error::unavailable(format!(
                "what the sandbox has written could not all be brought to its disk: {error}"
            ))
        })
    }
}

impl Actor {
    pub(super) fn unwritten(&self) -> Result<Option<Unwritten>, Error> {
        let opened = self.machine.as_ref().map(|machine| machine.unwritten(&self.folder)).transpose();
        opened.map_err(|error| Error::unavailable(format!("the sandbox's disk cannot be reached: {error}")))
    }

    /// What could not be written out is lost, unless the disk was only gone because what ran on it has ended.
    pub(super) fn on_not_written(&mut self, processes_since_ms: Option<u64>) {
        let runs_on = self.machine.as_ref().is_some_and(|machine| !machine.has_ended());
        if runs_on && processes_since_ms == self.record.report().processes_since_ms {
            self.record.lose_writes();
            self.note();
        }
    }

    pub(super) async fn take(&mut self, target: &Target) -> Result<Taken, Error> {
        self.check_volume()?;
        let since_ms = self.record.machine.as_ref().map_or(0, |machine| machine.since_ms);
        let (consistency, pause_us, suspended) = match (self.record.state, &mut self.machine) {
            (SandboxState::Running, Some(machine)) => {
                let captured = machine.capture(&self.host, &self.folder, target).await?;
                let consistency = if captured.quiesced { Consistency::Quiesced } else { Consistency::Crash };
                let suspended = captured.machine.map(|machine| {
                    std::fs::write(target.folder.join(STATE), &machine.state)?;
                    Ok(Suspended {
                        state_digest: digest::of_bytes(&machine.state),
                        made: machine.made,
                        memory_digest: None,
                        since_ms,
                        unwritten: false,
                    })
                });
                let suspended = suspended.transpose().map_err(|error| not_taken(&error))?;
                (consistency, Some(captured.pause_us), suspended)
            }
            // Whoever was made from it would have half of it, and not the rest.
            (SandboxState::Hibernated, _) if self.record.patch.is_some() => {
                return Err(Error::conflict(
                    "the sandbox was hibernated while a patch ran; wake it, which brings the patch to its end, and try again",
                ));
            }
            (SandboxState::Hibernated, _) => {
                let suspended = self.record.suspended.clone().filter(|_| !target.disk_only);
                // A disk whose memory is left behind is as after a loss of power.
                let whole = self.record.spec.isolation == Isolation::Container || suspended.is_some();
                self.take_from_rest(target.clone(), suspended.is_some()).await?;
                (if whole { Consistency::Quiesced } else { Consistency::Crash }, None, suspended)
            }
            _ => return Err(self.gone()),
        };
        Ok(Taken {
            spec: self.record.spec.clone(),
            template_digest: self.record.template_digest.clone(),
            lineage: self.record.lineage.clone(),
            writes_lost: self.record.writes_lost,
            consistency,
            pause_us,
            digest: self.record.disk.as_ref().map(|kept| kept.digest.clone()),
            suspended,
        })
    }

    async fn take_from_rest(&self, target: Target, with_memory: bool) -> Result<(), Error> {
        let folder = self.folder.clone();
        let taken = tokio::task::spawn_blocking(move || {
            rustix::fs::ioctl_ficlone(&*target.disk, File::open(folder.join(DISK))?)?;
            for name in [MEMORY, STATE].into_iter().filter(|_| with_memory) {
                disk::reflink(&File::open(folder.join(name))?, &target.folder.join(name))?;
            }
            Ok(())
        });
        taken.await.map_err(io::Error::other).flatten().map_err(|error: io::Error| not_taken(&error))
    }
}

fn not_taken(error: &io::Error) -> Error {
    Error::unavailable(format!("the sandbox's disk could not be taken: {error}"))
}
