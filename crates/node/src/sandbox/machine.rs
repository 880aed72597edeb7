//! The running part of a sandbox: its processes, its network slot, its CPUs and the connection to its agent.
//!
//! Where the two isolations differ, [`container`] and [`vm`] each have their part.

mod container;
mod vm;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;
use warren_guest_api::boot::Boot;
use warren_runtime::cgroup::{Cgroup, CgroupError};
use warren_runtime::process::{Exit, Watched};
use warren_runtime_container::MountedDisk;
use warren_types::{Error, ErrorKind, Isolation, Size};

use self::container::Container;
use self::vm::Vm;
use super::DISK;
use super::record::{MachineRecord, Record, Suspended, Transition, boot_id};
use super::stock::Prepared;
use crate::checkpoint::make::now_ms;
use crate::disk;
use crate::guest::Guest;
use crate::kernel_limits::is_shortage;
use crate::metadata::Meter;
use crate::registry::Host;
use warren_network::{Gate, Session, Slot};

pub(crate) use self::vm::{Fit, Start as VmStart, fit};

/// Of the disk of a sandbox, each way.
pub(crate) const IO_BYTES_PER_SECOND: u64 = 2 << 30;
pub(crate) const IO_OPERATIONS_PER_SECOND: u64 = 100_000;
/// Longest wait for killed processes to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for word of how a process has ended.
const EXIT_DEADLINE: Duration = Duration::from_millis(300);
/// How long commands get to end by themselves before a hibernation or a reboot ends them.
const GRACE: Duration = Duration::from_secs(2);
/// How long a machine that is started again gets to write its disk out.
const WRITE_OUT: Duration = Duration::from_secs(10);

pub(crate) struct Machine {
    pub(crate) guest: Guest,
    /// PID 1 of a container, the QEMU of a virtual machine.
    process: Watched,
    pid: i32,
    slot: Slot,
    cpus: Vec<u32>,
    cgroup: Cgroup,
    body: Body,
}

/// What the isolations have each for themselves.
enum Body {
    Container(Container),
    Vm(Vm),
}

/// What a sandbox can be started in at once.
pub(crate) enum Ready {
    Root(Prepared),
    Vm(VmStart),
}

impl Ready {
    /// Whether its processes are some that were there before.
    pub(crate) fn goes_on(&self) -> bool {
        match self {
            Self::Root(_) => false,
            Self::Vm(start) => start.launch.since_ms.is_some(),
        }
    }
}

/// Where to put what is captured.
#[derive(Clone)]
pub(crate) struct Target {
    /// An empty file on the volume, to become the disk.
    pub(crate) disk: Arc<File>,
    /// A folder on the volume, for memory where there is any.
    pub(crate) folder: PathBuf,
    /// Memory is not wanted.
    pub(crate) disk_only: bool,
}

/// What was captured.
pub(crate) struct Captured {
    /// Everything stood still, and all that had been written is there.
    pub(crate) quiesced: bool,
    /// From the first process that was stopped to the last that went on, in microseconds.
    pub(crate) pause_us: u64,
    /// What goes with the memory in the folder, if there is one.
    pub(crate) machine: Option<vm::Captured>,
}

/// What of a sandbox is not on the volume yet; it can be written out while the sandbox goes on.
pub(crate) enum Unwritten {
    /// Of a container's disk.
    Disk(Arc<MountedDisk>),
    /// What a machine's guest has in memory of its disk, and then what of its files is not on the volume.
    Guest(Guest, Vec<File>),
}

/// Starts the sandbox of `record`, on the disk whose image is in `folder`. Writes into the record how to find it again,
/// before there is anything to find. On failure nothing of it is left.
pub(crate) async fn start(
    host: &Arc<Host>,
    record: &mut Record,
    folder: &Path,
    ready: Ready,
    session: &Arc<Session>,
) -> Result<Machine, Error> {
    let (slot, kind) = match ready {
        Ready::Root(Prepared { slot, root, disk_device, .. }) => (slot, Kind::Root { root, disk_device }),
        Ready::Vm(start) => (start.slot, Kind::Vm { launch: start.launch }),
    };
    let disk_device = kind.disk_device();
    if let Err(error) = connect(host, &slot, record, session).await {
        disconnect(host, slot);
        drop(kind);
        release_disk(&disk_device, folder).await;
        return Err(error);
    }
    let cpus = host.cpus.take(record.spec.size.cpu_count);
    record.machine = Some(MachineRecord {
        boot_id: boot_id(),
        slot: slot.index,
        cpus: cpus.clone(),
        cgroup: match record.transition {
            Some(Transition::Restore { .. }) => format!("{}.{}", record.id, record.generation),
            _ => record.id.to_string(),
        },
        pid: 0,
        disk_device: disk_device.clone(),
        since_ms: kind.since_ms().unwrap_or_else(now_ms),
        resumed: kind.since_ms().is_some(),
        made: kind.made(),
    });
    let cgroup = host.cgroup(record.cgroup());
    let launched = match record.save(folder) {
        Ok(()) => {
            let place = Place { host, record, folder, cgroup: &cgroup, slot: &slot, cpus: &cpus };
            kind.launch(place).await
        }
        Err(error) => Err(trouble("could not write its record", &error)),
    };
    match launched {
        Ok(Launched { process, pid, guest, body }) => {
            let mut slot = slot;
            serve(host, &mut slot, record, session);
            if let Some(machine) = &mut record.machine {
                machine.pid = pid;
            }
            Ok(Machine { guest, process, pid, slot, cpus, cgroup, body })
        }
        Err(error) => {
            end_processes(&cgroup).await;
            host.cpus.give_back(&cpus);
            disconnect(host, slot);
            record.machine = None;
            release_disk(&disk_device, folder).await;
            Err(error)
        }
    }
}

/// Where a sandbox is being started.
struct Place<'a> {
    host: &'a Arc<Host>,
    record: &'a Record,
    folder: &'a Path,
    cgroup: &'a Cgroup,
    slot: &'a Slot,
    cpus: &'a [u32],
}

impl Place<'_> {
    fn boot(&self) -> Boot {
        let spec = &self.record.spec;
        Boot {
            sandbox_id: self.record.id.clone(),
            envs: spec.envs.clone(),
            user: spec.image.user.clone().unwrap_or_default(),
            workdir: spec.image.workdir.clone(),
        }
    }
}

struct Launched {
    process: Watched,
    pid: i32,
    guest: Guest,
    body: Body,
}

enum Kind {
    Root { root: warren_runtime_container::Root, disk_device: String },
    Vm { launch: vm::Launch },
}

impl Kind {
    fn disk_device(&self) -> String {
        match self {
            Self::Root { disk_device, .. } => disk_device.clone(),
            Self::Vm { .. } => String::new(),
        }
    }

    /// When the processes began that it goes on with.
    fn since_ms(&self) -> Option<u64> {
        match self {
            Self::Root { .. } => None,
            Self::Vm { launch } => launch.since_ms,
        }
    }

    fn made(&self) -> Option<warren_runtime_vm::snapshot::Made> {
        match self {
            Self::Root { .. } => None,
            Self::Vm { launch } => Some(launch.made.clone()),
        }
    }

    async fn launch(self, place: Place<'_>) -> Result<Launched, Error> {
        match self {
            Self::Root { root, disk_device } => container::launch(&place, root, disk_device).await,
            Self::Vm { launch } => vm::launch(&place, launch).await,
        }
    }
}

fn trouble(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::SandboxFailed, format!("the sandbox could not be started: {what}: {error}"))
}

/// Why a sandbox that was running is not taken over.
pub(crate) enum NotAdopted {
    /// It does not run any more, or cannot be used; whatever was left of it has been ended.
    Ended(String),
    /// This process lacks something; the sandbox runs on.
    Shortage(String),
}

impl NotAdopted {
    fn of(what: &str, error: &io::Error) -> Self {
        let reason = format!("{what}: {error}");
        if is_shortage(error) { Self::Shortage(reason) } else { Self::Ended(reason) }
    }
}

/// Takes over the sandbox that `record` says is running.
pub(crate) async fn adopt(
    host: &Arc<Host>,
    record: &mut Record,
    folder: &Path,
    session: &Arc<Session>,
) -> Result<Machine, NotAdopted> {
    let Some(machine) = record.machine.clone() else {
        return Err(NotAdopted::Ended("it has no processes".into()));
    };
    let cgroup = host.cgroup(record.cgroup());
    let adopted = async {
        if machine.boot_id != boot_id() || machine.pid == 0 || !cgroup.contains(machine.pid) {
            return Err(NotAdopted::Ended("its processes have ended".into()));
        }
        // A capture that was killed in every part of it has left it standing still.
        cgroup.thaw().map_err(|error| NotAdopted::Ended(error.to_string()))?;
        let process =
            Watched::new(machine.pid).map_err(|error| NotAdopted::of("its processes have ended", &error))?;
        let slot = host
            .network
            .adopt(machine.slot, machine.pid)
            .await
            .map_err(|error| NotAdopted::of("its network could not be taken over", &error))?;
        let found = match record.spec.isolation {
            Isolation::Container => container::find(&machine, folder).await,
            Isolation::Vm => vm::find(&machine, folder).await,
        };
        match found {
            Ok((guest, body)) => Ok((guest, body, process, slot)),
            Err(error) => {
                disconnect(host, slot);
                Err(match error.kind {
                    ErrorKind::Unavailable => NotAdopted::Shortage(error.message),
                    _ => NotAdopted::Ended(error.message),
                })
            }
        }
    };
    match adopted.await {
        Ok((guest, body, process, mut slot)) => {
            host.gateway.attach(host.network.plan().outside(slot.index), session.clone());
            serve(host, &mut slot, record, session);
            host.cpus.adopt(&machine.cpus);
            Ok(Machine { guest, process, pid: machine.pid, slot, cpus: machine.cpus.clone(), cgroup, body })
        }
        Err(NotAdopted::Ended(reason)) => {
            end_rest(host, record, folder).await;
            Err(NotAdopted::Ended(reason))
        }
        Err(shortage @ NotAdopted::Shortage(_)) => Err(shortage),
    }
}

impl Machine {
    /// Returns when PID 1, or QEMU, has ended.
    pub(crate) async fn ended(&self) {
        self.process.ended().await;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Connects to the agent again, after its connection broke.
    pub(crate) async fn reconnect(&mut self, folder: &Path) -> Result<(), Error> {
        let guest = match &self.body {
            Body::Container(_) => Guest::connect(folder).await?,
            Body::Vm(_) => Guest::connect_port(folder).await?,
        };
        // A connection broke for a reason; the next one is believed when it has carried a call.
        let nonsense = |error: Error| Error::new(ErrorKind::SandboxFailed, error.message);
        guest.check().await.map_err(nonsense)?;
        self.guest = guest;
        Ok(())
    }

    /// How often the kernel ended one of its processes for want of memory.
    pub(crate) fn out_of_memory_kills(&self) -> u64 {
        self.cgroup.out_of_memory_kills()
    }

    /// Whether hibernating keeps its processes.
    pub(crate) fn can_suspend(&self) -> bool {
        matches!(self.body, Body::Vm(_))
    }

    /// Asks commands and terminals to end, and waits for them a while. Whether nothing is in the memory of a guest then that
    /// belongs on its disk.
    pub(crate) async fn ask_to_end(&self) -> bool {
        match &self.body {
            Body::Container(_) => {
                container::ask_to_end(&self.cgroup).await;
                true
            }
            Body::Vm(_) => vm::ask_to_end(&self.guest).await,
        }
    }

    /// Ends commands and terminals at once, where they can be told from what else it is.
    pub(crate) fn kill_commands(&self) {
        if let Body::Container(_) = &self.body {
            container::kill_commands(&self.cgroup);
        }
    }

    /// Has written what only its own memory holds of its disk, if it can be brought to; whether it was.
    pub(crate) async fn write_out(&self) -> bool {
        match &self.body {
            Body::Container(_) => true,
            Body::Vm(_) => vm::write_out(&self.guest, WRITE_OUT).await,
        }
    }

    /// Stops it for good and leaves its memory in `folder`, beside the disk of the same moment. On failure it runs on.
    pub(crate) async fn suspend(&mut self, folder: &Path, since_ms: u64) -> Result<Suspended, Error> {
        match &mut self.body {
            Body::Container(_) => Err(Error::internal("a container has no memory that could be kept")),
            Body::Vm(vm) => vm.suspend(&self.guest, folder, since_ms).await,
        }
    }

    /// Whether it stands still, by itself, before a write that its disk has no room for.
    pub(crate) async fn has_no_room(&mut self) -> bool {
        match &mut self.body {
            Body::Container(_) => false,
            Body::Vm(vm) => vm.has_no_room().await,
        }
    }

    /// Lets it run on after [`Self::suspend`], or once there is room again.
    pub(crate) async fn go_on(&mut self) {
        if let Body::Vm(vm) = &mut self.body {
            vm.go_on().await;
        }
    }

    /// What of it could be written out before it is captured.
    pub(crate) fn unwritten(&self, folder: &Path) -> std::io::Result<Unwritten> {
        match &self.body {
            Body::Container(container) => Ok(Unwritten::Disk(container.disk.clone())),
            Body::Vm(_) => vm::unwritten(folder).map(|files| Unwritten::Guest(self.guest.clone(), files)),
        }
    }

    /// A folder of its root file system, seen from the host.
    fn open_root(&self) -> std::io::Result<File> {
        let root = File::open(format!("/proc/{}/root", self.pid))?;
        // Another process may have got the number since; not while this one was there before and after.
        if self.has_ended() {
            return Err(std::io::Error::other("it has ended"));
        }
        Ok(root)
    }

    /// Makes the target the same as its disk, and its memory where it has one, with everything in it standing still.
    pub(crate) async fn capture(
        &mut self,
        host: &Host,
        folder: &Path,
        target: &Target,
    ) -> Result<Captured, Error> {
        let captured = match &mut self.body {
            Body::Container(_) => {
                let root = self.open_root().map_err(|error| not_taken(&error))?;
                container::capture(host, &self.cgroup, &root, folder, &target.disk).await
            }
            Body::Vm(vm) => vm.capture(&self.guest, folder, target).await,
        };
        captured.inspect_err(|_| {
            let _ = self.cgroup.thaw();
        })
    }

    /// Bytes that it has written and that only the host's memory has; `None` where they are its own kernel's affair.
    pub(crate) fn unwritten_bytes(&self) -> Option<u64> {
        match &self.body {
            Body::Container(_) => Some(self.cgroup.unwritten_bytes()),
            Body::Vm(_) => None,
        }
    }

    /// How its process has ended, if the kernel tells: it does a moment after the end, when the launcher has been told.
    pub(crate) async fn exit(&self) -> Option<Exit> {
        let deadline = tokio::time::Instant::now() + EXIT_DEADLINE;
        loop {
            let exit = self.process.exit();
            if exit.is_some() || tokio::time::Instant::now() > deadline {
                return exit;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where to read what it uses.
    pub(crate) fn meter(&self, host: &Host) -> Meter {
        Meter {
            cgroup: self.cgroup.clone(),
            link: host.network.plan().link(self.slot.index),
            pid: self.pid,
            guest: match &self.body {
                Body::Container(_) => None,
                Body::Vm(_) => Some(self.guest.clone()),
            },
        }
    }

    /// Stops everything at once and for good; [`Self::kill`] has to follow. The end of many processes and of their mounts is
    /// work, and a container's can wait until what takes its place has started; the memory of a machine cannot.
    pub(crate) fn set_aside(&self) {
        let stands_still = match &self.body {
            Body::Container(_) => self.cgroup.freeze().is_ok(),
            Body::Vm(_) => false,
        };
        if !stands_still {
            self.kill();
        }
    }

    /// Ends everything at once; what it held is given back by [`Self::end_without_disk`].
    pub(crate) fn kill(&self) {
        let _ = self.cgroup.kill();
        // What was set aside ends in any case; its group is not to look as if somebody had to let it go on.
        let _ = self.cgroup.thaw();
    }

    /// The size it has to have instead of this one, because what is in its memory does not fit.
    pub(crate) fn outgrown(&self, size: Size) -> Option<Size> {
        match &self.body {
            Body::Container(_) => None,
            Body::Vm(vm) => vm.outgrown(size),
        }
    }

    pub(crate) fn cpus(&self) -> &[u32] {
        &self.cpus
    }

    /// Holds it to what its record says it may reach.
    pub(crate) async fn set_gate(&self, host: &Host, record: &Record) -> Result<(), Error> {
        set_gate(host, &self.slot, record).await
    }

    /// Changes its limits while it runs; the disk's size is not one of them.
    pub(crate) async fn resize(&mut self, host: &Arc<Host>, size: Size) -> Result<(), Error> {
        let cpus = host.cpus.take(size.cpu_count);
        let resized = match &mut self.body {
            Body::Container(_) => container::resize(&self.cgroup, size, &cpus).await,
            Body::Vm(vm) => vm.resize(&self.cgroup, size, &cpus).await,
        };
        let freed = match resized {
            Ok(()) => std::mem::replace(&mut self.cpus, cpus),
            Err(_) => cpus,
        };
        host.cpus.give_back(&freed);
        resized
    }

    /// Ends everything and gives back what it held. Its disk is no longer attached afterwards; it is an error when not all that
    /// was written is there, and nobody was told yet.
    pub(crate) async fn end(self, host: &Arc<Host>, folder: &Path) -> io::Result<()> {
        let (device, disk) = match &self.body {
            Body::Container(container) => (container.disk_device.clone(), Some(container.disk.clone())),
            Body::Vm(_) => (String::new(), None),
        };
        self.end_without_disk(host).await;
        let written = write_out_for_good(disk).await;
        release_disk(&device, folder).await;
        written
    }

    /// Ends everything; its disk may still be attached for a moment.
    pub(crate) async fn end_without_disk(self, host: &Arc<Host>) {
        end_processes(&self.cgroup).await;
        host.cpus.give_back(&self.cpus);
        disconnect(host, self.slot);
    }
}

impl Unwritten {
    /// Has the guest of a machine write out its part: should its memory ever be of no use, as to a fork of another size, nothing
    /// that was written is lost with it. One that does not come to it holds nobody up for longer than that. Whether it has.
    pub(crate) async fn ask_guest(&self, patience: Duration) -> bool {
        match self {
            Self::Disk(_) => true,
            Self::Guest(guest, _) => vm::write_out(guest, patience).await,
        }
    }

    /// Writes out the rest; blocks.
    pub(crate) fn write_out(&self) -> std::io::Result<()> {
        match self {
            Self::Disk(disk) => disk.write_out(),
            Self::Guest(_, files) => files.iter().try_for_each(File::sync_data),
        }
    }
}

fn not_taken(error: &dyn std::fmt::Display) -> Error {
    Error::unavailable(format!("the sandbox's disk could not be taken: {error}"))
}

fn not_resized(error: CgroupError) -> Error {
    super::resize::refused(error)
}

/// Before anything runs in it: the firewall holds its slot to what it may reach, and the gateway knows whose it is.
async fn connect(host: &Host, slot: &Slot, record: &Record, session: &Arc<Session>) -> Result<(), Error> {
    set_gate(host, slot, record).await?;
    host.gateway.attach(host.network.plan().outside(slot.index), session.clone());
    Ok(())
}

async fn set_gate(host: &Host, slot: &Slot, record: &Record) -> Result<(), Error> {
    let gate = Gate::of(&record.spec.egress, record.spec.sealed);
    let set = host.network.set_gate(slot, gate).await;
    set.map_err(|error| Error::unavailable(format!("what it may reach could not be put in force: {error}")))
}

fn disconnect(host: &Host, slot: Slot) {
    host.gateway.detach(host.network.plan().outside(slot.index));
    host.network.retire(slot);
}

fn serve(host: &Host, slot: &mut Slot, record: &Record, session: &Arc<Session>) {
    if let Err(error) = slot.serve(&host.gateway, session) {
        warn!(%error, id = %record.id, "a sandbox has no resolver");
    }
}

/// Ends all processes of a sandbox and removes its cgroup.
pub(crate) async fn end_processes(cgroup: &Cgroup) {
    let deadline = tokio::time::Instant::now() + KILL_DEADLINE;
    loop {
        let killed = cgroup.kill();
        let gone = cgroup.is_populated().is_ok_and(|populated| !populated);
        if gone && cgroup.remove().is_ok() {
            return;
        }
        if tokio::time::Instant::now() > deadline {
            warn!(?killed, "processes of a sandbox do not end");
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Ends what is left of a sandbox that nobody can use any more, and lets go of its disk. What of its writes is lost is kept in
/// mind, where its disk is still there to be asked.
pub(crate) async fn end_rest(host: &Host, record: &mut Record, folder: &Path) {
    let cgroup = host.cgroup(record.cgroup());
    let device = record.machine.as_ref().map(|machine| machine.disk_device.clone()).unwrap_or_default();
    let disk = match disk::is_attached(&device, &folder.join(DISK)) {
        true => container::open_disk(&device).await.ok(),
        false => None,
    };
    end_processes(&cgroup).await;
    if let Err(error) = write_out_for_good(disk).await {
        record.note_lost_writes(&error);
    }
    if let Err(error) = disk::wait_released_by_all(&folder.join(DISK)).await {
        warn!(%error, folder = %folder.display(), "a disk is still attached");
    }
}

/// The last that is asked of a disk.
async fn write_out_for_good(disk: Option<Arc<MountedDisk>>) -> io::Result<()> {
    let Some(disk) = disk else { return Ok(()) };
    let written = tokio::task::spawn_blocking(move || disk.write_out());
    written.await.map_err(io::Error::other)?
}

/// Waits until the kernel has written out and let go of a disk that nobody uses any more.
pub(crate) async fn release_disk(device: &str, folder: &Path) {
    if let Err(error) = disk::wait_released(device, &folder.join(DISK)).await {
        warn!(%error, folder = %folder.display(), "a disk is still attached");
    }
}
