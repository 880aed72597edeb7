//! The running part of a sandbox: its processes, its network slot, its CPUs and the connection to its agent.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tracing::{debug, warn};
use warren_guest_api::boot::Boot;
use warren_runtime::cgroup::{Cgroup, CgroupError, Limits};
use warren_runtime::process::Watched;
use warren_runtime_container::plan::encode_boot;
use warren_runtime_container::{Capture, Captured, Root};
use warren_types::{Error, ErrorKind, Size};

use super::DISK;
use super::record::{MachineRecord, Record, Transition, boot_id};
use super::stock::Prepared;
use crate::checkpoint::make::now_ms;
use crate::disk;
use crate::guest::Guest;
use crate::network::Slot;
use crate::registry::Host;

/// Processes and threads of one sandbox.
const MAX_PROCESSES: u32 = 4096;
/// Of its disk, each way.
const IO_BYTES_PER_SECOND: u64 = 2 << 30;
const IO_OPERATIONS_PER_SECOND: u64 = 100_000;
/// Longest wait for killed processes to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// How long commands get to end by themselves before a hibernation ends them.
const GRACE: Duration = Duration::from_secs(2);
/// A sandbox that does not come to rest within this is captured as it is.
const REST_WITHIN: Duration = Duration::from_millis(500);
/// Longest time it is kept at rest.
const REST_AT_MOST: Duration = Duration::from_secs(2);

pub(crate) struct Machine {
    pub(crate) guest: Guest,
    init: Watched,
    pid: i32,
    slot: Slot,
    cpus: Vec<u32>,
    cgroup: Cgroup,
    disk_device: String,
}

/// Starts the sandbox of `record` in a prepared root, on the disk whose image is in `folder`. Writes into the record how
/// to find it again, before there is anything to find. On failure nothing of it is left.
pub(crate) async fn start(
    host: &Arc<Host>,
    record: &mut Record,
    folder: &Path,
    prepared: Prepared,
) -> Result<Machine, Error> {
    let Prepared { slot, root, disk_device } = prepared;
    if !record.spec.network
        && let Err(error) = host.network.disconnect(&slot).await
    {
        host.network.retire(slot);
        drop(root);
        release_disk(&disk_device, folder).await;
        return Err(Error::unavailable(format!("the network could not be switched off: {error}")));
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
        since_ms: now_ms(),
    });
    let limits = limits(record.spec.size, cpus.clone(), disk_device.clone());
    let id_base = host.network.plan().id_base(slot.index);
    let started = match launch(host, record, folder, root, id_base, &limits).await {
        // The socket has been listening since before the agent ran: this waits for its first answer.
        Ok(ended) => Guest::connect(folder).await.map(|guest| (ended, guest)),
        Err(error) => Err(error),
    };
    match started {
        Ok((ended, guest)) => {
            let mut slot = slot;
            serve_names(&mut slot, record);
            let cgroup = host.cgroup(record.cgroup());
            let pid = record.machine.as_ref().map_or(0, |machine| machine.pid);
            Ok(Machine { guest, init: ended, pid, slot, cpus, cgroup, disk_device })
        }
        Err(error) => {
            end_processes(&host.cgroup(record.cgroup())).await;
            host.cpus.give_back(&cpus);
            host.network.retire(slot);
            record.machine = None;
            release_disk(&disk_device, folder).await;
            Err(error)
        }
    }
}

fn limits(size: Size, cpus: Vec<u32>, disk_device: String) -> Limits {
    Limits {
        cpu_count: size.cpu_count,
        cpus,
        memory_bytes: u64::from(size.memory_mb) << 20,
        pids: MAX_PROCESSES,
        disk_device: Some(disk_device),
        io_bytes_per_second: IO_BYTES_PER_SECOND,
        io_operations_per_second: IO_OPERATIONS_PER_SECOND,
    }
}

async fn launch(
    host: &Arc<Host>,
    record: &mut Record,
    folder: &Path,
    root: Root,
    id_base: u32,
    limits: &Limits,
) -> Result<Watched, Error> {
    let trouble = |what: &str, error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::SandboxFailed, format!("the sandbox could not be started: {what}: {error}"))
    };
    record.save(folder).map_err(|error| trouble("could not write its record", &error))?;
    let cgroup = host.cgroup(record.cgroup());
    cgroup
        .create(limits)
        .and_then(|()| cgroup.delegate(id_base))
        .and_then(|()| cgroup.admit(root.pid()))
        .map_err(|error| trouble("its cgroup", &error))?;
    let boot = encode_boot(&Boot { sandbox_id: record.id.clone(), envs: record.spec.envs.clone() });
    let launched =
        root.launch(folder, &host.agent, &boot).await.map_err(|error| trouble("launch", &error))?;
    debug!(id = %record.id, steps = ?launched.steps, "launched");
    if let Some(machine) = &mut record.machine {
        machine.pid = launched.pid;
    }
    Watched::new(launched.pid).map_err(|error| trouble("it ended at once", &error))
}

/// Takes over the sandbox that `record` says is running. An error means that it is not, or cannot be used; whatever is
/// left of it has been ended.
pub(crate) async fn adopt(host: &Arc<Host>, record: &Record, folder: &Path) -> Result<Machine, String> {
    let Some(machine) = &record.machine else { return Err("it has no processes".into()) };
    let cgroup = host.cgroup(record.cgroup());
    let adopted = async {
        if machine.boot_id != boot_id() || machine.pid == 0 || !cgroup.contains(machine.pid) {
            return Err("its processes have ended".to_owned());
        }
        // A capture that was killed in every part of it has left it standing still.
        cgroup.thaw().map_err(|error| error.to_string())?;
        let ended =
            Watched::new(machine.pid).map_err(|error| format!("its processes have ended: {error}"))?;
        let slot = host
            .network
            .adopt(machine.slot, machine.pid)
            .await
            .map_err(|error| format!("its network could not be taken over: {error}"))?;
        match Guest::connect(folder).await {
            Ok(guest) => Ok((guest, ended, slot)),
            Err(error) => {
                host.network.retire(slot);
                Err(error.message)
            }
        }
    };
    match adopted.await {
        Ok((guest, ended, mut slot)) => {
            serve_names(&mut slot, record);
            host.cpus.adopt(&machine.cpus);
            Ok(Machine {
                guest,
                init: ended,
                pid: machine.pid,
                slot,
                cpus: machine.cpus.clone(),
                cgroup,
                disk_device: machine.disk_device.clone(),
            })
        }
        Err(reason) => {
            end_processes(&cgroup).await;
            release_disk(&machine.disk_device, folder).await;
            Err(reason)
        }
    }
}

impl Machine {
    /// Returns when PID 1 has ended.
    pub(crate) async fn ended(&self) {
        self.init.ended().await;
    }

    /// Connects to the agent again, after its connection broke.
    pub(crate) async fn reconnect(&mut self, folder: &Path) -> Result<(), Error> {
        let guest = Guest::connect(folder).await?;
        // A connection broke for a reason; the next one is believed when it has carried a call.
        guest.check().await?;
        self.guest = guest;
        Ok(())
    }

    /// How often the kernel ended one of its processes for want of memory.
    pub(crate) fn out_of_memory_kills(&self) -> u64 {
        self.cgroup.out_of_memory_kills()
    }

    /// Asks commands and terminals to end, and waits for them a while.
    pub(crate) async fn ask_to_end(&self) {
        let asked = self.cgroup.processes_below().unwrap_or_default();
        for pid in asked.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let deadline = tokio::time::Instant::now() + GRACE;
        while tokio::time::Instant::now() < deadline
            && self.cgroup.processes_below().is_ok_and(|left| !left.is_empty())
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A folder of its root file system, seen from the host.
    pub(crate) fn open_root(&self) -> std::io::Result<File> {
        let root = File::open(format!("/proc/{}/root", self.pid))?;
        // Another process may have got the number since; not while this one was there before and after.
        if self.init.has_ended() {
            return Err(std::io::Error::other("it has ended"));
        }
        Ok(root)
    }

    /// Makes the empty file `target` the same as its disk, with everything in it standing still.
    pub(crate) async fn capture(&self, host: &Host, folder: &Path, target: &File) -> Result<Captured, Error> {
        let trouble = |error: &dyn std::fmt::Display| {
            Error::unavailable(format!("the sandbox's disk could not be taken: {error}"))
        };
        let root = self.open_root().map_err(|error| trouble(&error))?;
        let source = File::open(folder.join(DISK)).map_err(|error| trouble(&error))?;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (cgroup_parent, cgroup_name) = self.cgroup.names();
        let capture = Capture {
            cgroup_parent,
            cgroup_name,
            rest_within_ms: milliseconds(REST_WITHIN),
            rest_at_most_ms: milliseconds(REST_AT_MOST),
        };
        let launcher = host.launcher().map_err(|error| trouble(&error))?;
        let captured = warren_runtime_container::capture(
            &launcher,
            &capture,
            root.as_fd(),
            source.as_fd(),
            target.as_fd(),
        )
        .await;
        captured.map_err(|error| {
            let _ = self.cgroup.thaw();
            trouble(&error)
        })
    }

    /// Bytes of memory that cannot be taken back without harm.
    pub(crate) fn memory_in_use(&self) -> u64 {
        self.cgroup.memory_in_use()
    }

    /// Ends everything at once; what it held is given back by [`Self::end_without_disk`].
    pub(crate) fn kill(&self) {
        let _ = self.cgroup.kill();
    }

    pub(crate) fn cpus(&self) -> &[u32] {
        &self.cpus
    }

    /// Changes its limits while it runs; the disk's size is not one of them.
    pub(crate) async fn resize(&mut self, host: &Arc<Host>, size: Size) -> Result<(), CgroupError> {
        let cpus = host.cpus.take(size.cpu_count);
        let (cgroup, wanted) = (self.cgroup.clone(), cpus.clone());
        let memory = u64::from(size.memory_mb) << 20;
        // Taking memory back can take a while.
        let resized = tokio::task::spawn_blocking(move || cgroup.resize(size.cpu_count, &wanted, memory));
        let resized = resized.await.unwrap_or_else(|error| Err(CgroupError::Interrupted(error.to_string())));
        let freed = match resized {
            Ok(()) => std::mem::replace(&mut self.cpus, cpus),
            Err(_) => cpus,
        };
        host.cpus.give_back(&freed);
        resized
    }

    /// Ends everything and gives back what it held. Its disk is written out and no longer attached afterwards.
    pub(crate) async fn end(self, host: &Arc<Host>, folder: &Path) {
        let device = self.disk_device.clone();
        self.end_without_disk(host).await;
        release_disk(&device, folder).await;
    }

    /// Ends everything; its disk may still be attached for a moment.
    pub(crate) async fn end_without_disk(self, host: &Arc<Host>) {
        end_processes(&self.cgroup).await;
        host.cpus.give_back(&self.cpus);
        host.network.retire(self.slot);
    }
}

fn serve_names(slot: &mut Slot, record: &Record) {
    if record.spec.network
        && let Err(error) = slot.serve_names()
    {
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

/// Waits until the kernel has written out and let go of a disk that nobody uses any more.
pub(crate) async fn release_disk(device: &str, folder: &Path) {
    if let Err(error) = disk::wait_released(device, &folder.join(DISK)).await {
        warn!(%error, folder = %folder.display(), "a disk is still attached");
    }
}
