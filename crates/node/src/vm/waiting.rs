//! Machines that wait, restored and running, for the sandbox that will have them.
//!
//! A restored machine has to run its first instructions before it answers, which under emulation takes most of a create. So
//! a few are kept that have done that. They belong to nobody, and refuse everything until they are renewed:
//!
//! - fresh ones, of the kind that was last asked for;
//! - ones of checkpoints that were lately forked. What runs in a checkpoint would run on in them, so they stand still once
//!   they have answered, with no time passing inside, and until they are somebody's the firewall lets nothing of them out or in:
//!   it drops what they send, which is sent again when they go on.
//!
//! ```text
//!   <volume>/machines/waiting/<n>/                disk.img, memory and sockets of one; renamed to its sandbox's
//!   <volume>/machines/waiting/<checkpoint>-<n>/   the same
//! ```

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warren_runtime::cgroup::Cgroup;
use warren_runtime_vm::machine::read_state;
use warren_runtime_vm::plan::{AGENT_SOCKET, CONTROL_SOCKET};
use warren_runtime_vm::snapshot::Made;
use warren_types::{CheckpointId, Error, Size};

use super::Vms;
use super::qemu::{self, From, Qemu, Wanted};
use super::template;
use crate::checkpoint::Whole;
use crate::disk;
use crate::guest::Guest;
use crate::lately::{Lately, Limits, Missing, Remembered};
use crate::registry::Host;
use crate::sandbox::machine::end_processes;
use crate::sandbox::{CURRENT, DISK, MEMORY, STATE};
use warren_network::{Gate, Slot};

/// Fresh machines kept waiting.
const STOCK: usize = 2;
/// Machines of checkpoints kept waiting.
const FORKS: Limits = Limits { checkpoints: 2, each: 2, patience: Duration::from_secs(5 * 60) };
/// One that waits for a fork may use up the host's memory to this part of it.
const MEMORY_LEFT: u64 = 4;
/// With less than this part of the host's memory left, those that wait for forks are ended.
const MEMORY_TIGHT: u64 = 10;
/// Memory of one of them that is read into the host's cache.
const READ_AHEAD: u64 = 512 << 20;
const LOOK_AT_MEMORY: Duration = Duration::from_secs(15);
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
    /// Its processors have been stopped.
    stands_still: bool,
}

pub(crate) struct Stock {
    /// Fresh ones.
    ready: Mutex<VecDeque<Waiting>>,
    /// What was last asked for: size, and template of disks.
    kind: Mutex<Option<(Size, String)>>,
    /// Ones of checkpoints with memory.
    forks: Lately<Waiting>,
    /// Held while one of those is made.
    making: tokio::sync::Mutex<()>,
    /// The stock has shrunk, or others are wanted.
    wanted: Notify,
}

/// What to add to the stock.
enum Addition {
    Fresh(Size, String),
    Fork(Missing),
}

/// What a machine is restored from.
enum Origin {
    /// The template of its kind.
    Template(Made, Size),
    Checkpoint(Box<Whole>, Made),
}

// === impl Stock ===

impl Default for Stock {
    fn default() -> Self {
        Self {
            ready: Mutex::default(),
            kind: Mutex::default(),
            forks: Lately::new(FORKS),
            making: tokio::sync::Mutex::default(),
            wanted: Notify::new(),
        }
    }
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

    /// One of that checkpoint, if one waits. The checkpoint must have been compared with its digest, and the machine fit what
    /// it is to be.
    pub(crate) async fn take_fork(&self, host: &Host, checkpoint: &CheckpointId) -> Option<Waiting> {
        loop {
            let taken = self.forks.take(checkpoint);
            self.wanted.notify_one();
            let waiting = taken?;
            if !waiting.idle.qemu.process.has_ended() {
                return Some(waiting);
            }
            waiting.end(host).await;
        }
    }

    /// That checkpoint, with memory, will be forked.
    pub(crate) fn expect_forks(&self, checkpoint: &CheckpointId) {
        self.forks.expect(checkpoint);
        self.wanted.notify_one();
    }

    /// Ends everything that shares a checkpoint's blocks; returns when that is done. Nobody may be able to open the
    /// checkpoint any more.
    pub(crate) async fn forget_forks(&self, host: &Host, checkpoint: &CheckpointId) {
        let forgotten = self.forks.forget(checkpoint);
        // Whoever is making one of it is told, and tidies up.
        let _nobody_makes_one = self.making.lock().await;
        end_all(host, forgotten).await;
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
        self.end_fresh(host, |made| made.template_digest == template_digest).await;
    }

    /// Ends fresh ones of that make, because what they were started from is not to be trusted. Others take their place.
    pub(super) async fn forget_made(&self, host: &Host, made: &Made) {
        self.end_fresh(host, |of| of == made).await;
        self.wanted.notify_one();
    }

    async fn end_fresh(&self, host: &Host, which: impl Fn(&Made) -> bool) {
        let ended: VecDeque<Waiting> = {
            let mut ready = lock(&self.ready);
            let (ended, others) = ready.drain(..).partition(|waiting| which(&waiting.idle.made));
            *ready = others;
            ended
        };
        end_all(host, ended.into()).await;
    }

    /// A kind to make one of, while there are too few.
    fn missing(&self) -> Option<(Size, String)> {
        (lock(&self.ready).len() < STOCK).then(|| lock(&self.kind).clone()).flatten()
    }

    /// A fresh one if there is none; then forks'.
    fn addition(&self) -> Option<Addition> {
        let fresh = self.missing().map(|(size, template)| Addition::Fresh(size, template));
        if fresh.is_some() && lock(&self.ready).is_empty() {
            return fresh;
        }
        self.forks.missing().map(Addition::Fork).or(fresh)
    }

    /// Returns when there may be something to do.
    async fn changed(&self) {
        tokio::select! {
            () = self.wanted.notified() => {}
            () = self.forks.expired() => {}
            () = tokio::time::sleep(LOOK_AT_MEMORY), if !self.forks.is_empty() => {}
        }
    }

    /// What waits for forks and should not any more.
    fn surplus(&self) -> Vec<Waiting> {
        let (total, available) = memory_mb();
        if !self.forks.is_empty() && available < total / MEMORY_TIGHT {
            return self.forks.clear();
        }
        self.forks.surplus()
    }
}

// === impl Origin ===

impl Origin {
    async fn of_checkpoint(host: &Host, vms: &Vms, checkpoint: &CheckpointId) -> Result<Self, Error> {
        let whole = host.checkpoints.open_whole(checkpoint).await?;
        let suspended = whole.suspended().ok_or_else(|| trouble(&"the checkpoint has no memory"))?;
        vms.check(&suspended.made).map_err(|reason| trouble(&reason))?;
        let (total, available) = memory_mb();
        if available < total / MEMORY_LEFT + u64::from(suspended.made.hardware.memory_mb) {
            return Err(trouble(&"the host has too little memory left"));
        }
        Ok(Self::Checkpoint(Box::new(whole), suspended.made))
    }

    fn made(&self) -> &Made {
        match self {
            Self::Template(made, _) | Self::Checkpoint(_, made) => made,
        }
    }

    fn disk_mb(&self) -> u32 {
        match self {
            Self::Template(_, size) => size.disk_mb,
            Self::Checkpoint(whole, _) => whole.manifest.spec.size.disk_mb,
        }
    }

    /// Makes memory and disk in `folder` share all blocks of its own, and returns the state that goes with them.
    async fn share(self, host: &Host, vms: &Vms, folder: &Path) -> Result<Vec<u8>, Error> {
        match self {
            Self::Template(made, size) => {
                let template = vms.templates.share(host, vms, size, &made.template_digest, folder).await?;
                Ok(template.state.clone())
            }
            Self::Checkpoint(whole, _) => {
                let folder = folder.to_owned();
                let shared = tokio::task::spawn_blocking(move || {
                    whole.share(&folder, CURRENT)?;
                    let state = read_state(&folder.join(STATE)).map_err(io::Error::other)?;
                    fs::remove_file(folder.join(STATE))?;
                    Ok(state)
                });
                shared.await.map_err(io::Error::other).flatten().map_err(|error| trouble(&error))
            }
        }
    }
}

// === impl Idle ===

impl Idle {
    fn is_of(&self, size: Size, template_digest: &str) -> bool {
        let hardware = &self.made.hardware;
        self.disk_mb == size.disk_mb
            && hardware.memory_mb == size.memory_mb
            && hardware.cpu_count == size.cpu_count
            && self.made.template_digest == template_digest
    }

    /// Gives its files and its processes to a sandbox, whose network is as it is to be.
    pub(crate) async fn hand_over(&mut self, folder: &Path, cgroup: &Cgroup) -> io::Result<()> {
        for name in [DISK, MEMORY, AGENT_SOCKET, CONTROL_SOCKET] {
            fs::rename(self.folder.join(name), folder.join(name))?;
        }
        cgroup.admit(self.qemu.pid).map_err(io::Error::other)?;
        let _ = self.cgroup.remove();
        let _ = fs::remove_dir_all(&self.folder);
        if self.stands_still {
            self.qemu.control.go_on().await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Ends it, wherever its processes are.
    pub(crate) async fn end(self) {
        end_processes(&self.cgroup).await;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

// === impl Waiting ===

impl Waiting {
    async fn end(self, host: &Host) {
        self.idle.end().await;
        host.network.retire(self.slot);
    }

    /// Makes one that waits, unless it is `gone` before that. On failure nothing of it is left.
    async fn make(
        host: &Host,
        vms: &Vms,
        origin: Origin,
        name: &str,
        gone: &CancellationToken,
    ) -> Result<Self, Error> {
        let folder = vms.templates.waiting().join(name);
        let cgroup = host.cgroup(&format!("{}waiting-{name}", template::CGROUPS));
        let (made, disk_mb) = (origin.made().clone(), origin.disk_mb());
        let of_checkpoint = matches!(origin, Origin::Checkpoint(..));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| trouble(&error))?;
        let begun = match origin.share(host, vms, &folder).await {
            Ok(state) => host.network.take().await.map(|slot| (state, slot)).map_err(|error| trouble(&error)),
            Err(error) => Err(error),
        };
        let (state, slot) = begun.inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        let started = async {
            if of_checkpoint {
                let shut = host.network.set_gate(&slot, Gate::Closed).await;
                shut.map_err(|error| trouble(&error))?;
            }
            let hardware = made.hardware.clone();
            cgroup
                .create(&qemu::limits(hardware.cpu_count, hardware.memory_mb, Vec::new()))
                .map_err(|error| trouble(&error))?;
            let wanted = Wanted {
                folder: &folder,
                cgroup: &cgroup,
                slot: &slot,
                hardware,
                template_image: host.disks.template_image(&made.template_digest),
                from: From::State(state),
            };
            let _turn = vms.turn().await?;
            let mut qemu = qemu::start(host, vms, &wanted).await?;
            let guest = Guest::connect_port(&folder).await?;
            // Its first answer is the slow one.
            guest.check().await?;
            if of_checkpoint {
                qemu.control.stop().await.map_err(|error| trouble(&error))?;
                read_ahead(&folder).await;
            }
            Ok((qemu, guest))
        };
        let started = gone.run_until_cancelled(started).await;
        match started.unwrap_or_else(|| Err(trouble(&"it is not wanted any more"))) {
            Ok((qemu, guest)) => {
                let idle = Idle { qemu, guest, made, disk_mb, folder, cgroup, stands_still: of_checkpoint };
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

fn trouble(error: &dyn std::fmt::Display) -> Error {
    Error::unavailable(format!("no virtual machine could be kept waiting: {error}"))
}

async fn end_all(host: &Host, waiting: Vec<Waiting>) {
    for waiting in waiting {
        waiting.end(host).await;
    }
}

/// Keeps the stock filled until `stop`, and ends what waits then.
pub(crate) async fn fill(host: Arc<Host>, vms: Arc<Vms>, stop: CancellationToken) {
    let stock = &vms.waiting;
    let mut remembered = Remembered::read(host.disks.volume().join("forked-machines"));
    remembered.checkpoints().iter().for_each(|checkpoint| stock.expect_forks(checkpoint));
    let filled = async {
        for number in 0_u64.. {
            let addition = loop {
                end_all(&host, stock.surplus()).await;
                remembered.keep(stock.forks.checkpoints());
                match stock.addition() {
                    Some(addition) => break addition,
                    None => stock.changed().await,
                }
            };
            tokio::time::sleep(REFILL_AFTER).await;
            match addition {
                Addition::Fork(missing) => add_fork(&host, &vms, &missing, number).await,
                Addition::Fresh(size, template_digest) => {
                    if let Err(error) = add_fresh(&host, &vms, size, &template_digest, number).await {
                        warn!(%error, "no virtual machine could be kept waiting");
                        tokio::time::sleep(RETRY_AFTER).await;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(filled).await;
    let fresh: Vec<Waiting> = lock(&stock.ready).drain(..).collect();
    end_all(&host, fresh).await;
    end_all(&host, stock.forks.clear()).await;
    // One that was being made.
    template::end_strays(&host).await;
}

async fn add_fresh(
    host: &Host,
    vms: &Vms,
    size: Size,
    template_digest: &str,
    number: u64,
) -> Result<(), Error> {
    let origin = Origin::Template(vms.made(size, template_digest), size);
    let made = Waiting::make(host, vms, origin, &number.to_string(), &CancellationToken::new()).await;
    match made {
        Ok(waiting) => {
            lock(&vms.waiting.ready).push_back(waiting);
            Ok(())
        }
        Err(error) => {
            vms.templates.doubt(host, vms, size, template_digest).await;
            Err(error)
        }
    }
}

/// What cannot be made of a checkpoint is not tried again before somebody asks for it, and is told why then.
async fn add_fork(host: &Host, vms: &Vms, missing: &Missing, number: u64) {
    let (stock, checkpoint) = (&vms.waiting, &missing.checkpoint);
    let _making = stock.making.lock().await;
    let made = async {
        let origin = Origin::of_checkpoint(host, vms, checkpoint).await?;
        Waiting::make(host, vms, origin, &format!("{checkpoint}-{number}"), &missing.gone).await
    };
    let unwanted = match made.await {
        Ok(waiting) => stock.forks.put(missing, waiting).err().into_iter().collect(),
        Err(error) => {
            debug!(%error, %checkpoint, "no virtual machine waits for the next fork");
            stock.forks.give_up(missing)
        }
    };
    end_all(host, unwanted).await;
}

/// The memory of a checkpoint was written page by page and lies all over the drive; whoever takes the machine would wait for
/// the drive at each page it has not touched yet.
async fn read_ahead(folder: &Path) {
    let memory = folder.join(MEMORY);
    let read = tokio::task::spawn_blocking(move || disk::read_ahead(&File::open(memory)?, READ_AHEAD));
    if let Err(error) = read.await.map_err(io::Error::other).flatten() {
        debug!(%error, "the memory of a machine that waits could not be read ahead");
    }
}

/// Of the host: what it has, and what could be had without harm.
fn memory_mb() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let find = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        line.and_then(|kilobytes| kilobytes.trim().parse::<u64>().ok()).unwrap_or(0) >> 10
    };
    (find("MemTotal:"), find("MemAvailable:"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
