//! Taking the disk of a sandbox for a checkpoint.
//!
//! A running one first writes out what it has in memory while it goes on; then the actor, which nobody else can ask for
//! anything meanwhile, has the rest written and the image shared while everything inside stands still. That pause depends
//! on what was written in the last moment, not on how much there is.

use std::fs::File;
use std::io;
use std::sync::Arc;

use warren_node_api::{Consistency, SandboxSpec};
use warren_types::{Error, SandboxState};

use super::DISK;
use super::actor::{Actor, Handle};
use super::machine::Machine;
use crate::checkpoint::manifest::Lineage;

/// Rounds of writing out before the pause; each leaves what was written during it.
const ROUNDS: usize = 2;

/// A disk, and what it was the disk of.
pub(crate) struct Taken {
    pub(crate) spec: SandboxSpec,
    pub(crate) template_digest: String,
    pub(crate) lineage: Option<Lineage>,
    pub(crate) consistency: Consistency,
    /// Microseconds; absent when it was not running.
    pub(crate) pause_us: Option<u64>,
    /// What it must turn out to hold, if that is known.
    pub(crate) digest: Option<String>,
}

impl Handle {
    /// Makes the empty file `target` the same as the sandbox's disk at one moment between now and the answer.
    pub(crate) async fn capture(&self, target: Arc<File>) -> Result<Taken, Error> {
        for _ in 0..ROUNDS {
            let Some(root) = self.open_root().await? else { break };
            let synced = tokio::task::spawn_blocking(move || rustix::fs::syncfs(&root)).await;
            synced.map_err(io::Error::other).and_then(|synced| synced.map_err(Into::into)).map_err(
                |error| Error::unavailable(format!("the sandbox's disk could not be written out: {error}")),
            )?;
        }
        self.take_disk(target).await
    }
}

impl Actor {
    pub(super) fn open_root(&self) -> Result<Option<File>, Error> {
        let opened = self.machine.as_ref().map(Machine::open_root).transpose();
        opened.map_err(|error| Error::unavailable(format!("the sandbox's disk cannot be reached: {error}")))
    }

    pub(super) async fn take_disk(&self, target: &Arc<File>) -> Result<Taken, Error> {
        self.check_volume()?;
        let (consistency, pause_us) = match (self.record.state, &self.machine) {
            (SandboxState::Running, Some(machine)) => {
                let captured = machine.capture(&self.host, &self.folder, target).await?;
                let consistency = if captured.quiesced { Consistency::Quiesced } else { Consistency::Crash };
                (consistency, Some(captured.pause_us))
            }
            (SandboxState::Hibernated, _) => {
                let (image, target) = (self.folder.join(DISK), target.clone());
                let taken = tokio::task::spawn_blocking(move || {
                    rustix::fs::ioctl_ficlone(&*target, File::open(image)?).map_err(Into::into)
                });
                taken.await.map_err(io::Error::other).flatten().map_err(|error| {
                    Error::unavailable(format!("the sandbox's disk could not be taken: {error}"))
                })?;
                (Consistency::Quiesced, None)
            }
            _ => return Err(self.gone()),
        };
        Ok(Taken {
            spec: self.record.spec.clone(),
            template_digest: self.record.template_digest.clone(),
            lineage: self.record.lineage.clone(),
            consistency,
            pause_us,
            digest: self.record.disk.as_ref().map(|kept| kept.digest.clone()),
        })
    }
}
