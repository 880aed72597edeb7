//! A sandbox as a virtual machine.
//!
//! At rest its folder has what a machine goes on with: `disk.img`, `memory` and `state`, all of one moment. What they must
//! be is in the record ([`Suspended`]).

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tracing::{info, warn};
use warren_guest_api::machine::Identity;
use warren_node_api::CODE_CANNOT_GROW;
use warren_runtime::cgroup::{Cgroup, CgroupError};
use warren_runtime_vm::Hardware;
use warren_runtime_vm::machine::{Machine as Control, read_state};
use warren_runtime_vm::snapshot::Made;
use warren_types::{CheckpointId, Error, ErrorKind, SandboxState, Size};

use super::{Body, Captured as CapturedMachine, GRACE, Launched, Place, Target, not_taken};
use crate::disk::{self, digest};
use crate::guest::Guest;
use crate::registry::Host;
use crate::sandbox::record::{MachineRecord, Record, Suspended};
use crate::sandbox::{DISK, MEMORY, STATE};
use crate::vm::qemu::{self, From, Qemu, Wanted};
use crate::vm::template::suspend;
use crate::vm::waiting::{Idle, Waiting};
use crate::vm::{self, Vms};
use warren_network::Slot;

/// Longest time to wait for what a guest has to write before it ends.
const END_DEADLINE: Duration = Duration::from_secs(15);
/// The same while nobody else can ask anything of the sandbox: before its disk alone is taken.
const LAST_SYNC: Duration = Duration::from_secs(2);

pub(crate) struct Start {
    pub(crate) slot: Slot,
    pub(crate) launch: Launch,
}

/// With what it begins.
pub(crate) enum Begin {
    Start(From),
    /// A machine that has been waiting for a sandbox.
    TakeOver(Box<Idle>),
}

/// How a machine is to begin.
pub(crate) struct Launch {
    pub(crate) vms: Arc<Vms>,
    pub(crate) made: Made,
    pub(crate) begin: Begin,
    pub(crate) identity: Identity,
    /// When the processes began that it goes on with; absent when it has none.
    pub(crate) since_ms: Option<u64>,
}

impl Start {
    /// A new machine from the template of its size, in an empty `folder`.
    pub(crate) async fn fresh(host: &Host, record: &Record, folder: &Path) -> Result<Self, Error> {
        let vms = vm::require(host.vms.as_ref())?;
        let (size, template_digest) = (record.spec.size, &record.template_digest);
        let new = |made: Made, begin| Launch {
            vms: vms.clone(),
            made,
            begin,
            identity: Identity::New,
            since_ms: None,
        };
        if let Some(Waiting { slot, idle }) = vms.waiting.take(host, size, template_digest).await {
            return Ok(Self { slot, launch: new(idle.made.clone(), Begin::TakeOver(Box::new(idle))) });
        }
        let template = vms.templates.share(host, &vms, size, template_digest, folder).await?;
        let begin = Begin::Start(From::State(template.state.clone()));
        Self::new(host, new(template.made.clone(), begin)).await
    }

    /// Whether one that was to be [`Self::fresh`] has failed because what it was started from is damaged. The next is started
    /// from another.
    pub(crate) async fn was_of_damaged(host: &Host, record: &Record) -> bool {
        let Some(vms) = &host.vms else { return false };
        vms.templates.doubt(host, vms, record.spec.size, &record.template_digest).await
    }

    /// A machine that waits, restored from `checkpoint`, whose memory is `suspended`; if there is one that fits.
    pub(crate) async fn fork(
        host: &Host,
        record: &Record,
        checkpoint: &CheckpointId,
        suspended: &Suspended,
    ) -> Option<Self> {
        let vms = host.vms.clone()?;
        if !matches!(fit(host, record.spec.size, suspended), Fit::Good) {
            return None;
        }
        let Waiting { slot, idle } = vms.waiting.take_fork(host, checkpoint).await?;
        let launch = Launch {
            vms,
            made: idle.made.clone(),
            begin: Begin::TakeOver(Box::new(idle)),
            identity: identity(record),
            since_ms: Some(suspended.since_ms),
        };
        Some(Self { slot, launch })
    }

    /// Starts from the kernel, on the disk there is.
    pub(crate) async fn boot(host: &Host, record: &Record) -> Result<Self, Error> {
        let vms = vm::require(host.vms.as_ref())?;
        let made = vms.made(record.spec.size, &record.template_digest);
        Self::new(
            host,
            Launch { vms, made, begin: Begin::Start(From::Boot), identity: identity(record), since_ms: None },
        )
        .await
    }

    /// Goes on with the memory in `folder`.
    pub(crate) async fn resume(
        host: &Host,
        record: &Record,
        folder: &Path,
        suspended: Suspended,
    ) -> Result<Self, Error> {
        let vms = vm::require(host.vms.as_ref())?;
        let state = read_state(&folder.join(STATE)).map_err(|error| {
            Error::new(ErrorKind::SandboxFailed, format!("its memory cannot be used: {error}"))
        })?;
        if digest::of_bytes(&state) != suspended.state_digest {
            return Err(Error::new(
                ErrorKind::SandboxFailed,
                "its memory cannot be used: its state is damaged",
            ));
        }
        let launch = Launch {
            vms,
            made: suspended.made,
            begin: Begin::Start(From::State(state)),
            identity: identity(record),
            since_ms: Some(suspended.since_ms),
        };
        Self::new(host, launch).await
    }

    async fn new(host: &Host, launch: Launch) -> Result<Self, Error> {
        let slot = host.network.take().await;
        let slot = slot.map_err(|error| super::trouble("no network", &error))?;
        Ok(Self { slot, launch })
    }
}

/// Whether a machine can go on with memory that was kept.
pub(crate) enum Fit {
    Good,
    Useless(String),
}

pub(crate) fn fit(host: &Host, size: Size, suspended: &Suspended) -> Fit {
    let checked = vm::require(host.vms.as_ref())
        .map_err(|error| error.message)
        .and_then(|vms| vms.check(&suspended.made));
    let hardware = &suspended.made.hardware;
    match checked {
        Err(reason) => Fit::Useless(reason),
        // What it has too much is taken from it once it runs.
        Ok(()) if hardware.cpu_count >= size.cpu_count && hardware.memory_mb >= size.memory_mb => Fit::Good,
        Ok(()) => Fit::Useless(format!(
            "it is of a machine with {} MB and {} vCPU, which cannot be given {} MB and {} vCPU without a boot",
            hardware.memory_mb, hardware.cpu_count, size.memory_mb, size.cpu_count
        )),
    }
}

/// A sandbox that is being made is another than the one its memory and disk were of.
fn identity(record: &Record) -> Identity {
    match record.state {
        SandboxState::Creating => Identity::New,
        _ => Identity::Same,
    }
}

/// What goes with a captured memory.
pub(crate) struct Captured {
    pub(crate) made: Made,
    pub(crate) state: Vec<u8>,
}

pub(super) struct Vm {
    control: Control,
    made: Made,
    /// It was to have less memory than it was started with, and uses more than that.
    outgrown: bool,
}

pub(super) async fn launch(place: &Place<'_>, launch: Launch) -> Result<Launched, Error> {
    let Launch { vms, made, begin, identity, since_ms } = launch;
    let size = place.record.spec.size;
    let limits = qemu::limits(size.cpu_count, made.hardware.memory_mb, place.cpus.to_vec());
    let limited = place.cgroup.create(&limits).map_err(|error| super::trouble("its cgroup", &error));
    let (Qemu { control, process, pid }, guest) = match begin {
        Begin::TakeOver(mut idle) => {
            let taken = match limited {
                Ok(()) => idle
                    .hand_over(place.folder, place.cgroup)
                    .await
                    .map_err(|error| super::trouble("its machine could not be taken over", &error)),
                Err(error) => Err(error),
            };
            match taken {
                Ok(()) => (idle.qemu, idle.guest),
                Err(error) => {
                    idle.end().await;
                    return Err(error);
                }
            }
        }
        Begin::Start(from) => {
            limited?;
            let _turn = vms.turn().await?;
            let wanted = Wanted {
                folder: place.folder,
                cgroup: place.cgroup,
                slot: place.slot,
                hardware: made.hardware.clone(),
                template_image: place.host.disks.template_image(&made.template_digest),
                from,
            };
            let qemu = qemu::start(place.host, &vms, &wanted).await?;
            (qemu, Guest::connect_port(place.folder).await?)
        }
    };
    qemu::renew(&guest, place.boot(), identity).await?;
    let mut vm = Vm { control, made, outgrown: false };
    if size.memory_mb < vm.made.hardware.memory_mb
        && let Err(error) = vm.inflate(size.memory_mb).await
    {
        if since_ms.is_none() {
            return Err(error);
        }
        // What goes on in it is worth more than its size.
        vm.outgrown = true;
    }
    Ok(Launched { process, pid, guest, body: Body::Vm(vm) })
}

/// One that runs since before this start.
pub(super) async fn find(machine: &MachineRecord, folder: &Path) -> Result<(Guest, Body), Error> {
    let unknown = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::SandboxFailed, format!("its virtual machine does not answer: {error}"))
    };
    let made = machine.made.clone().ok_or_else(|| unknown(&"what it is made of is not written down"))?;
    let mut control = Control::connect(folder).await.map_err(|error| unknown(&error))?;
    // A capture or a hibernation that was cut off has left it standing still.
    control.go_on().await.map_err(|error| unknown(&error))?;
    let guest = Guest::connect_port(folder).await?;
    Ok((guest, Body::Vm(Vm { control, made, outgrown: false })))
}

/// Asks what runs to end and has the disk written out; whether that has been done.
pub(super) async fn ask_to_end(guest: &Guest) -> bool {
    let path = format!("/v1/end?ms={}", GRACE.as_millis());
    let ended = guest.json::<serde_json::Value>(Method::POST, &path, None::<&()>);
    // What does not answer is ended all the same.
    matches!(tokio::time::timeout(GRACE * 2 + END_DEADLINE, ended).await, Ok(Ok(_)))
}

/// Has the guest write out what it has of its disk in memory, and says whether it has; one that does not come to it holds
/// nobody up for longer than that.
pub(super) async fn write_out(guest: &Guest, patience: Duration) -> bool {
    let synced = guest.json::<serde_json::Value>(Method::POST, "/v1/sync", None::<&()>);
    matches!(tokio::time::timeout(patience, synced).await, Ok(Ok(_)))
}

pub(super) fn unwritten(folder: &Path) -> std::io::Result<Vec<File>> {
    [MEMORY, DISK].iter().map(|name| File::open(folder.join(name))).collect()
}

impl Vm {
    /// Stops it for good; its memory stays in `folder`. On failure it runs on.
    pub(super) async fn suspend(
        &mut self,
        guest: &Guest,
        folder: &Path,
        since_ms: u64,
    ) -> Result<Suspended, Error> {
        // Should the memory ever be of no use, nothing that was written is lost with it.
        let unwritten = !write_out(guest, GRACE).await;
        let suspended = async {
            let state = suspend(&mut self.control).await?;
            fs::write(folder.join(STATE), &state).map_err(|error| {
                Error::unavailable(format!("the state of the virtual machine could not be kept: {error}"))
            })?;
            Ok(Suspended {
                made: self.made.clone(),
                state_digest: digest::of_bytes(&state),
                memory_digest: None,
                since_ms,
                unwritten,
            })
        };
        let suspended = suspended.await;
        if suspended.is_err() {
            self.go_on().await;
        }
        suspended
    }

    /// Whether it stands still before a write that its disk has no room for.
    pub(super) async fn has_no_room(&mut self) -> bool {
        self.control.has_no_room().await.unwrap_or(false)
    }

    pub(super) async fn go_on(&mut self) {
        if let Err(error) = self.control.go_on().await {
            warn!(%error, "a virtual machine does not go on");
        }
    }

    pub(super) async fn capture(
        &mut self,
        guest: &Guest,
        folder: &Path,
        target: &Target,
    ) -> Result<CapturedMachine, Error> {
        if target.disk_only && !write_out(guest, LAST_SYNC).await {
            info!("a disk is taken without what its guest has not written out");
        }
        let (from, to) = (folder.to_owned(), target.clone());
        let copy = async move || {
            let copied = tokio::task::spawn_blocking(move || {
                rustix::fs::ioctl_ficlone(&*to.disk, File::open(from.join(DISK))?)?;
                if to.disk_only {
                    Ok(())
                } else {
                    disk::reflink(&File::open(from.join(MEMORY))?, &to.folder.join(MEMORY))
                }
            });
            copied.await.map_err(std::io::Error::other).flatten()
        };
        let (state, (), pause) = self.control.snapshot(copy).await.map_err(|error| not_taken(&error))?;
        Ok(CapturedMachine {
            // With its memory everything is there, written or not. Without, what came after the guest's last sync is not: that
            // was a moment ago, or it does not come to one.
            quiesced: !target.disk_only,
            pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
            machine: (!target.disk_only).then(|| Captured { made: self.made.clone(), state }),
        })
    }

    /// Less memory than it was started with, or that again.
    pub(super) async fn resize(&mut self, cgroup: &Cgroup, size: Size, cpus: &[u32]) -> Result<(), Error> {
        let Hardware { cpu_count, memory_mb, .. } = self.made.hardware;
        if size.memory_mb > memory_mb || size.cpu_count > cpu_count {
            return Err(Error::conflict(
                format!(
                    "this sandbox is a virtual machine that was started with {memory_mb} MB and {cpu_count} vCPU; it can be \
                     made smaller and as large as that again, not larger"
                ),
            ).with_code(CODE_CANNOT_GROW));
        }
        self.inflate(size.memory_mb).await?;
        let (cgroup, cpus, limit) = (cgroup.clone(), cpus.to_vec(), qemu::memory_limit(memory_mb));
        let resized = tokio::task::spawn_blocking(move || cgroup.resize(size.cpu_count, &cpus, limit));
        resized
            .await
            .unwrap_or_else(|error| Err(CgroupError::Interrupted(error.to_string())))
            .map_err(super::not_resized)
    }

    /// The size it was started with, if what goes on in it does not fit in the one it was to have.
    pub(super) fn outgrown(&self, size: Size) -> Option<Size> {
        let Hardware { cpu_count, memory_mb, .. } = self.made.hardware;
        self.outgrown.then_some(Size { cpu_count, memory_mb, ..size })
    }

    /// Takes memory from the guest, or gives it back.
    async fn inflate(&mut self, memory_mb: u32) -> Result<(), Error> {
        let failed = |error: warren_runtime_vm::MachineError| {
            Error::unavailable(format!("the memory of the virtual machine could not be changed: {error}"))
        };
        let given = self.control.balloon(memory_mb).await.map_err(failed)?;
        if given > memory_mb {
            let whole = self.made.hardware.memory_mb;
            let _ = self.control.balloon(whole).await;
            let megabyte = |memory: u32| u64::from(memory) << 20;
            return Err(super::not_resized(CgroupError::InUse {
                used: megabyte(given),
                limit: megabyte(memory_mb),
            }));
        }
        Ok(())
    }
}
