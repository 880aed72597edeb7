//! Machines that wait, restored and running, for the sandbox that will have them.
//!
//! A restored machine has to run its first instructions before it answers, which under emulation takes most of a create. So
//! a few are kept that have done that. They are of the kind that was last asked for, belong to nobody, and refuse everything
//! until they are renewed.
//!
//! ```text
//!   <volume>/machines/waiting/<n>/    disk.img, memory and sockets of one; renamed to its sandbox's
//! ```

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use warren_runtime::cgroup::Cgroup;
use warren_runtime_vm::plan::{AGENT_SOCKET, CONTROL_SOCKET};
use warren_runtime_vm::snapshot::Made;
use warren_types::{Error, Size};

use super::Vms;
use super::qemu::{self, From, Qemu, Wanted};
use super::template::{self, Template};
use crate::guest::Guest;
use crate::registry::Host;
use crate::sandbox::machine::end_processes;
use crate::sandbox::{DISK, MEMORY};
use warren_network::Slot;

/// Machines kept waiting.
const STOCK: usize = 2;
/// Whoever took one is being started at this moment and needs the machine more.
const REFILL_AFTER: Duration = Duration::from_millis(300);
/// Pause after one could not be made.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// A machine without a sandbox. It must be taken over or ended.
pub(crate) struct Waiting {
    pub(crate) slot: Slot,
    pub(crate) idle: Idle,
}

/// The same without its network.
pub(crate) struct Idle {
    pub(crate) qemu: Qemu,
    pub(crate) guest: Guest,
    pub(crate) made: Made,
    disk_mb: u32,
    folder: PathBuf,
    cgroup: Cgroup,
}

#[derive(Default)]
pub(crate) struct Stock {
    ready: Mutex<VecDeque<Waiting>>,
    /// What was last asked for: size, and template of disks.
    kind: Mutex<Option<(Size, String)>>,
    /// The stock has shrunk, or another kind is wanted.
    wanted: Notify,
}

impl Stock {
    /// One of that kind, if one waits; from now on they are of that kind.
    pub(crate) async fn take(&self, host: &Host, size: Size, template_digest: &str) -> Option<Waiting> {
        self.expect(size, template_digest);
        loop {
            let waiting = lock(&self.ready).pop_front()?;
            if waiting.idle.is_of(size, template_digest) && !waiting.idle.qemu.process.has_ended() {
                return Some(waiting);
            }
            waiting.end(host).await;
        }
    }

    /// From now on they are of that kind.
    pub(crate) fn expect(&self, size: Size, template_digest: &str) {
        *lock(&self.kind) = Some((size, template_digest.to_owned()));
        self.wanted.notify_one();
    }

    /// None are wanted any more over a template that is about to go, and those there are end.
    pub(super) async fn forget(&self, host: &Host, template_digest: &str) {
        {
            let mut kind = lock(&self.kind);
            if kind.as_ref().is_some_and(|(_, digest)| digest == template_digest) {
                *kind = None;
            }
        }
        let over: Vec<Waiting> = {
            let mut ready = lock(&self.ready);
            let is_over = |waiting: &Waiting| waiting.idle.made.template_digest == template_digest;
            let (over, others) = ready.drain(..).partition(is_over);
            *ready = others;
            Vec::from(over)
        };
        for waiting in over {
            waiting.end(host).await;
        }
    }

    /// A kind to make one of, while there are too few.
    fn missing(&self) -> Option<(Size, String)> {
        (lock(&self.ready).len() < STOCK).then(|| lock(&self.kind).clone()).flatten()
    }
}

impl Idle {
    fn is_of(&self, size: Size, template_digest: &str) -> bool {
        let hardware = &self.made.hardware;
        self.disk_mb == size.disk_mb
            && hardware.memory_mb == size.memory_mb
            && hardware.cpu_count == size.cpu_count
            && self.made.template_digest == template_digest
    }

    /// Gives its files and its processes to a sandbox.
    pub(crate) fn hand_over(&self, folder: &Path, cgroup: &Cgroup) -> io::Result<()> {
        for name in [DISK, MEMORY, AGENT_SOCKET, CONTROL_SOCKET] {
            fs::rename(self.folder.join(name), folder.join(name))?;
        }
        cgroup.admit(self.qemu.pid).map_err(io::Error::other)?;
        let _ = self.cgroup.remove();
        let _ = fs::remove_dir_all(&self.folder);
        Ok(())
    }

    /// Ends it, wherever its processes are.
    pub(crate) async fn end(self) {
        end_processes(&self.cgroup).await;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Waiting {
    async fn end(self, host: &Host) {
        self.idle.end().await;
        host.network.retire(self.slot);
    }

    async fn make(
        host: &Host,
        vms: &Vms,
        template: &Arc<Template>,
        disk_mb: u32,
        number: u64,
    ) -> Result<Self, Error> {
        let folder = vms.templates.waiting().join(number.to_string());
        let trouble = |error: &dyn std::fmt::Display| {
            Error::unavailable(format!("no virtual machine could be kept waiting: {error}"))
        };
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| trouble(&error))?;
        template.share(&folder).await.map_err(|error| trouble(&error))?;
        let slot = host.network.take().await.map_err(|error| trouble(&error))?;
        let cgroup = host.cgroup(&format!("{}waiting-{number}", template::CGROUPS));
        let started = async {
            let hardware = template.made.hardware.clone();
            cgroup
                .create(&qemu::limits(hardware.cpu_count, hardware.memory_mb, Vec::new()))
                .map_err(|error| trouble(&error))?;
            let wanted = Wanted {
                folder: &folder,
                cgroup: &cgroup,
                slot: &slot,
                hardware,
                template_image: host.disks.template_image(&template.made.template_digest),
                from: From::State(template.state.clone()),
            };
            let _turn = vms.turn().await?;
            let qemu = qemu::start(host, vms, &wanted).await?;
            let guest = Guest::connect_port(&folder).await?;
            // Its first answer is the slow one.
            guest.check().await?;
            Ok((qemu, guest))
        };
        match started.await {
            Ok((qemu, guest)) => {
                let idle = Idle { qemu, guest, made: template.made.clone(), disk_mb, folder, cgroup };
                Ok(Self { slot, idle })
            }
            Err(error) => {
                end_processes(&cgroup).await;
                host.network.retire(slot);
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }
}

/// Keeps the stock filled until `stop`, and ends what waits then.
pub(crate) async fn fill(host: Arc<Host>, vms: Arc<Vms>, stop: CancellationToken) {
    let stock = &vms.waiting;
    let filled = async {
        for number in 0_u64.. {
            let (size, template_digest) = loop {
                match stock.missing() {
                    Some(kind) => break kind,
                    None => stock.wanted.notified().await,
                }
            };
            tokio::time::sleep(REFILL_AFTER).await;
            let made = async {
                let template = vms.templates.ensure(&host, &vms, size, &template_digest).await?;
                Waiting::make(&host, &vms, &template, size.disk_mb, number).await
            };
            match made.await {
                Ok(waiting) => lock(&stock.ready).push_back(waiting),
                Err(error) => {
                    warn!(%error, "no virtual machine could be kept waiting");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    };
    stop.run_until_cancelled(filled).await;
    let waiting: Vec<Waiting> = lock(&stock.ready).drain(..).collect();
    for waiting in waiting {
        waiting.end(&host).await;
    }
    // One that was being made.
    template::end_strays(&host).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
