//! From running to rest: the processes of a container end and its disk stays, a virtual machine is stopped with its memory;
//! what is kept is read and remembered by its digest.
//!
//! The digest is made beside the mailbox: whoever uses the sandbox meanwhile wakes it, and the reading is called off.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};
use warren_node_api::Report;
use warren_types::{Error, SandboxState};

use super::actor::{Actor, Answer, sleep_until};
use super::log;
use super::record::{Kept, Transition};
use super::results;
use super::{DISK, MEMORY};
use crate::checkpoint::make::now_ms;

/// How long a hibernation waits for calls under way.
const LAST_CALLS: Duration = Duration::from_secs(2);
/// How long who asked for a hibernation waits for the digest.
const DIGEST_WAIT: Duration = Duration::from_secs(5);
/// Bytes that must be free on the volume beside what is to be written: a disk that grows needs some for itself.
const SPARE_BYTES: u64 = 32 << 20;
/// Between two tries to hibernate an idle sandbox, when the first failed.
const RETRY: Duration = Duration::from_secs(10);

/// The reading of a disk at rest.
#[derive(Default)]
pub(crate) struct Measuring {
    task: Option<JoinHandle<io::Result<Digests>>>,
    called_off: Arc<AtomicBool>,
    waiters: Vec<Answer<Report>>,
    /// When the waiters are answered all the same.
    patience: Option<Instant>,
}

/// What came of it; `None` when only the patience has come to its end.
pub(crate) type Measured = Option<io::Result<Digests>>;

/// What disk and memory hold.
pub(crate) struct Digests {
    disk: String,
    memory: Option<String>,
}

impl Measuring {
    pub(super) async fn ended(&mut self) -> Measured {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        tokio::select! {
            digest = task => {
                self.task = None;
                Some(digest.map_err(io::Error::other).flatten())
            }
            () = sleep_until(self.patience) => None,
        }
    }
}

impl Actor {
    pub(super) async fn hibernate(&mut self, answer: Answer<Report>) {
        match self.ensure_hibernated().await {
            Ok(()) if self.measuring.task.is_some() => {
                self.measuring.waiters.push(answer);
                self.measuring.patience.get_or_insert_with(|| Instant::now() + DIGEST_WAIT);
            }
            Ok(()) => self.answer_report(answer),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    async fn ensure_hibernated(&mut self) -> Result<(), Error> {
        match self.record.state {
            SandboxState::Hibernated => return Ok(()),
            SandboxState::Running => {}
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        self.patching.call_off(&Error::unavailable("the sandbox was hibernated meanwhile; try again"));
        // Calls that were let in get to end; those that come now wait for the wake.
        let deadline = Instant::now() + LAST_CALLS;
        while self.activity.has_calls() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.write_out().await?;
        self.begin_transition(Transition::Hibernate)?;
        if let Err(error) = self.bring_to_rest().await {
            // It runs on as if nothing had been asked.
            results::forget(&self.folder);
            self.record.transition = None;
            let _ = self.save();
            return Err(error);
        }
        self.end_machine().await;
        self.record.machine = None;
        self.hibernate_not_before = None;
        self.become_state(SandboxState::Hibernated, None)?;
        info!("hibernated");
        self.begin_measuring();
        Ok(())
    }

    /// Up to where nothing is left to do but to end its processes. What has memory to keep keeps it.
    async fn bring_to_rest(&mut self) -> Result<(), Error> {
        let since_ms = self.record.machine.as_ref().map_or(0, |machine| machine.since_ms);
        let Some(machine) = &mut self.machine else { return Ok(()) };
        if machine.can_suspend() {
            log::take_over(&machine.guest, &self.folder).await;
            self.record.suspended = Some(machine.suspend(&self.folder, since_ms).await?);
            // The memory is whole from here on: a node that is killed now finds it.
            let saved = self.save();
            if saved.is_err()
                && let Some(machine) = &mut self.machine
            {
                self.record.suspended = None;
                machine.go_on().await;
            }
            return saved;
        }
        machine.ask_to_end().await;
        results::take_over(&machine.guest, &self.folder).await;
        log::take_over(&machine.guest, &self.folder).await;
        // What they wrote to the last; it is little.
        self.write_out().await
    }

    /// Brings to the disk of a container what it has written, while it still runs: when its processes have ended there is
    /// nobody left who could keep what has no room. For the same reason nothing is begun that has none: what the kernel
    /// cannot write it forgets.
    pub(super) async fn write_out(&mut self) -> Result<(), Error> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let Some(bytes) = machine.unwritten_bytes() else { return Ok(()) };
        let free = self.host.disks.free_bytes();
        if free < bytes + SPARE_BYTES {
            return Err(Error::unavailable(format!(
                "{} MiB that the sandbox has written are not on its disk yet, and the node's volume is nearly full ({} MiB \
                 free); it runs on: delete files or sandboxes, or enlarge the volume",
                bytes.div_ceil(1 << 20),
                free >> 20
            )));
        }
        let unwritten = self.unwritten()?;
        let written = match unwritten {
            Some(unwritten) => unwritten.write_out_on_a_thread().await,
            None => Ok(()),
        };
        match written {
            // Said once. Its file system may take nothing any more until it is mounted again, so what there is no place for is
            // not a reason to keep it from resting for ever.
            Err(error) if self.record.writes_lost => {
                warn!(%error, "a sandbox goes on without what could not be written");
                Ok(())
            }
            Err(error) => {
                warn!(%error, "a sandbox has written what is not on its disk");
                self.record.lose_writes();
                self.note();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes down what the end of its processes is for. When that fails nothing has happened.
    pub(super) fn begin_transition(&mut self, transition: Transition) -> Result<(), Error> {
        self.record.transition = Some(transition);
        self.save().inspect_err(|_| self.record.transition = None)
    }

    pub(super) fn begin_measuring(&mut self) {
        let (folder, with_memory) = (self.folder.clone(), self.record.suspended.is_some());
        let called_off = Arc::new(AtomicBool::new(false));
        self.measuring.called_off = called_off.clone();
        self.measuring.patience = None;
        let host = self.host.clone();
        self.measuring.task = Some(tokio::spawn(async move {
            let _turn = host.measuring.acquire().await.map_err(io::Error::other)?;
            let verified = host.checkpoints.verified.clone();
            let read = move || {
                let measure = |name| verified.measure(&File::open(folder.join(name))?, &called_off);
                Ok(Digests {
                    disk: measure(DISK)?,
                    memory: with_memory.then(|| measure(MEMORY)).transpose()?,
                })
            };
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other).flatten()
        }));
    }

    /// Calls the reading off, and answers who waited for its end. What it still reads harms nobody.
    pub(super) fn stop_measuring(&mut self) {
        self.measuring.called_off.store(true, Ordering::Relaxed);
        if let Some(task) = self.measuring.task.take() {
            task.abort();
        }
        self.on_measured(None);
    }

    pub(super) fn on_measured(&mut self, measured: Measured) {
        match measured {
            Some(Ok(Digests { disk: digest, memory })) if self.record.state == SandboxState::Hibernated => {
                if let Some(suspended) = &mut self.record.suspended {
                    suspended.memory_digest = memory;
                }
                self.record.disk = Some(Kept {
                    digest,
                    generation: self.record.generation,
                    at_ms: now_ms(),
                    patches_applied: self.record.lineage.as_ref().map(|lineage| lineage.patches_applied),
                    patch: self.record.patch.clone(),
                });
                if let Err(error) = self.save() {
                    // It is made again at the next start of the node.
                    warn!(%error, "the digest of a disk could not be written down");
                }
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                warn!(%error, "the disk of a hibernated sandbox could not be read");
            }
            Some(_) | None => {}
        }
        self.measuring.patience = None;
        for answer in std::mem::take(&mut self.measuring.waiters) {
            self.answer_report(answer);
        }
    }

    pub(super) async fn on_idle(&mut self) {
        if self.idle_deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return;
        }
        let Err(error) = self.ensure_hibernated().await else { return };
        warn!(%error, "an idle sandbox could not be hibernated and runs on; trying again soon");
        self.hibernate_not_before = Some(Instant::now() + RETRY);
        let warning = format!(
            "it is idle and could not be hibernated: {}; it runs on, and is tried again every {} seconds",
            error.message,
            RETRY.as_secs()
        );
        if self.record.warning.as_ref() != Some(&warning) {
            self.record.warning = Some(warning);
            self.note();
        }
    }
}
