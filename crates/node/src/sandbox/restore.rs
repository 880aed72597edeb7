//! From running to running with other processes: a reboot on the same disk, a restore on the disk of a checkpoint.
//!
//! ```text
//!   reboot     write down ▸ processes end ▸ start ▸ answer
//!   restore    next.* from the checkpoint ▸ write down ▸ answer ▸ next.* take their place ▸ processes stop ▸ start ▸ they end
//! ```
//!
//! What was written down happens, whatever becomes of the node meanwhile ([`Actor::start_again`] goes on with it). Id,
//! settings and everything else of the record stay. A sandbox that cannot be started again hibernates and says why.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};
use warren_node_api::Report;
use warren_types::{Error, SandboxState};

use super::actor::{Actor, Answer, Changing};
use super::record::Transition;
use super::results;
use super::start::With;
use super::{CURRENT, NEXT};
use crate::checkpoint::Whole;

const NOT_WRITTEN: &str = "it was started anew before its guest had written everything to its disk, which it did not come to in \
    time: what was written last may be missing";

/// What a sandbox is to be started anew for.
pub(crate) enum Order {
    Reboot {
        /// Without asking its processes to end first.
        hard: bool,
    },
    Restore(Whole),
}

impl Actor {
    pub(super) async fn begin(&mut self, order: Order, changing: Changing, answer: Answer<Report>) {
        match order {
            Order::Reboot { hard } => {
                let rebooted = self.reboot(hard).await;
                drop(changing);
                match rebooted {
                    Ok(()) if self.patching.is_running() => self.patching.wait(answer),
                    Ok(()) => self.answer_report(answer),
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
            Order::Restore(whole) => {
                let prepared = self.prepare_restore(whole).await;
                // Until one that has failed runs again its use is refused, not held up.
                let at_once = prepared.is_ok() && self.record.state == SandboxState::Error;
                if at_once {
                    self.start_again().await;
                }
                drop(changing);
                match prepared {
                    Ok(()) if self.record.state == SandboxState::Error => {
                        let _ = answer.send(Err(self.gone()));
                    }
                    Ok(()) => {
                        self.answer_report(answer);
                        if !at_once {
                            self.start_again().await;
                        }
                    }
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
        }
    }

    async fn reboot(&mut self, hard: bool) -> Result<(), Error> {
        match self.record.state {
            SandboxState::Running => {}
            // Nothing runs: starting it is all there is to do, without what was in its memory.
            SandboxState::Hibernated | SandboxState::Error => return self.rise(With::DiskAlone).await,
            SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        self.patching.call_off(&Error::unavailable("the sandbox was rebooted meanwhile; try again"));
        self.write_out().await?;
        self.begin_transition(Transition::Restart)?;
        let mut written = true;
        if let Some(machine) = &self.machine {
            if hard {
                written = machine.write_out().await;
                machine.kill_commands();
            } else {
                written = machine.ask_to_end().await;
            }
            results::take_over(&machine.guest, &self.folder).await;
        }
        // What they wrote to the last.
        if !hard && let Err(error) = self.write_out().await {
            results::forget(&self.folder);
            self.record.transition = None;
            let _ = self.save();
            return Err(error);
        }
        self.end_machine().await;
        self.start_or_rest().await?;
        if !written {
            self.record.warning = Some(NOT_WRITTEN.to_owned());
            self.note();
        }
        info!(hard, written, "rebooted");
        Ok(())
    }

    /// Up to here everything can be refused without harm; from here on it happens.
    async fn prepare_restore(&mut self, whole: Whole) -> Result<(), Error> {
        match self.record.state {
            SandboxState::Running | SandboxState::Hibernated | SandboxState::Error => {}
            SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        if whole.manifest.sandbox_id != self.record.id {
            return Err(Error::invalid("the checkpoint is of another sandbox; fork it instead"));
        }
        self.check_volume()?;
        if whole.manifest.spec.isolation != self.record.spec.isolation {
            return Err(Error::conflict("the checkpoint is of another isolation than this sandbox has"));
        }
        let restore = Transition::Restore {
            template_digest: whole.manifest.template_digest.clone(),
            lineage: whole.manifest.lineage.clone(),
            suspended: whole.suspended(),
            writes_lost: whole.manifest.writes_lost,
        };
        let folder = self.folder.clone();
        let made = tokio::task::spawn_blocking(move || whole.share(&folder, NEXT)).await;
        let prepared = made
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| Error::unavailable(format!("the checkpoint's disk could not be taken: {error}")))
            .and_then(|()| self.begin_transition(restore));
        if prepared.is_err() {
            NEXT.remove(&self.folder);
            return prepared;
        }
        self.patching.call_off(&Error::unavailable("the sandbox was restored meanwhile; try again"));
        self.stop_measuring();
        Ok(())
    }

    /// Carries out what is written down as under way. The beginning of it may lie before the node's start.
    pub(super) async fn start_again(&mut self) {
        let mut old = None;
        if let Some(Transition::Restore { template_digest, lineage, suspended, writes_lost }) =
            self.record.transition.clone()
        {
            // First, because it is all that could fail; what runs still has the old one and does not notice.
            if let Err(error) = self.put_next_in_place(suspended.is_some()).await {
                return self.stay_with_old_disk(&error).await;
            }
            if let Some(machine) = &self.machine {
                machine.kill_commands();
                results::take_over(&machine.guest, &self.folder).await;
            }
            old = self.set_machine_aside().await;
            self.record.template_digest = template_digest;
            self.record.lineage = lineage;
            // Of the checkpoint that it was forked from, which may be another.
            self.patching.owe(Arc::default());
            self.record.patch_error = None;
            self.record.writes_lost = writes_lost;
            // What its memory was in the middle of is of another time.
            self.record.patch = None;
            self.record.disk = None;
            self.record.suspended = suspended;
        }
        let started = self.start_or_rest().await;
        if let Some(old) = old {
            self.abandon(old);
        }
        match started {
            Ok(()) => info!("started again"),
            Err(error) => warn!(%error, "a sandbox could not be started again and hibernates"),
        }
    }

    /// Memory is only good until a machine has run on it. Should that be cut off, it is taken from `next.*` again, which stay
    /// until the sandbox runs; a disk alone can be started from at any time.
    async fn put_next_in_place(&self, with_memory: bool) -> io::Result<()> {
        let folder = self.folder.clone();
        let placed = tokio::task::spawn_blocking(move || match with_memory {
            true => NEXT.share(&folder, CURRENT, true),
            false => NEXT.rename_disk(&folder, CURRENT),
        });
        placed.await.map_err(io::Error::other)?
    }

    async fn stay_with_old_disk(&mut self, error: &io::Error) {
        warn!(%error, "a restored disk could not be put in place");
        self.record.transition = None;
        if self.machine.is_none() && self.record.state == SandboxState::Running {
            let _ = self.start_or_rest().await;
        }
        self.record.warning =
            Some(format!("it could not be restored and goes on with its own disk: {error}"));
        self.note();
    }

    async fn start_or_rest(&mut self) -> Result<(), Error> {
        self.record.machine = None;
        let Err(error) = self.start().await else {
            NEXT.remove(&self.folder);
            return Ok(());
        };
        // The memory that ran does not go with the disk any more; that of the checkpoint is still there.
        self.record.suspended = match self.record.transition.take() {
            Some(Transition::Restore { suspended: Some(suspended), .. })
                if self.put_next_in_place(true).await.is_ok() =>
            {
                Some(suspended)
            }
            _ => None,
        };
        if self.record.state == SandboxState::Running {
            // Its disk is whole and the next use tries again.
            let _ = self.become_state(SandboxState::Hibernated, None);
        }
        self.record.warning = Some(format!("it could not be started again: {}", error.message));
        self.note();
        NEXT.remove(&self.folder);
        if self.record.state == SandboxState::Hibernated {
            self.begin_measuring();
        }
        Err(error)
    }
}
