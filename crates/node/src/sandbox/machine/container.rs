//! A sandbox as a container.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tracing::debug;
use warren_runtime::cgroup::{Cgroup, CgroupError, Limits};
use warren_runtime::process::Watched;
use warren_runtime_container::plan::encode_boot;
use warren_runtime_container::{Capture, MountedDisk, Root};
use warren_types::{Error, ErrorKind, Size};

use super::{
    Body, Captured, GRACE, IO_BYTES_PER_SECOND, IO_OPERATIONS_PER_SECOND, Launched, Place, not_resized,
    not_taken, trouble,
};
use crate::guest::Guest;
use crate::kernel_limits::is_shortage;
use crate::registry::Host;
use crate::sandbox::DISK;
use crate::sandbox::record::MachineRecord;

/// Processes and threads of one sandbox.
const MAX_PROCESSES: u32 = 4096;
/// A sandbox that does not come to rest within this is captured as it is.
const REST_WITHIN: Duration = Duration::from_millis(500);
/// Longest time it is kept at rest.
const REST_AT_MOST: Duration = Duration::from_secs(2);

pub(super) struct Container {
    /// The loop device of its disk, as `major:minor`.
    pub(super) disk_device: String,
    pub(super) disk: Arc<MountedDisk>,
}

pub(super) async fn launch(place: &Place<'_>, root: Root, disk_device: String) -> Result<Launched, Error> {
    let size = place.record.spec.size;
    let limits = Limits {
        cpu_count: size.cpu_count,
        cpus: place.cpus.to_vec(),
        memory_bytes: u64::from(size.memory_mb) << 20,
        pids: MAX_PROCESSES,
        disk_device: Some(disk_device.clone()),
        io_bytes_per_second: IO_BYTES_PER_SECOND,
        io_operations_per_second: IO_OPERATIONS_PER_SECOND,
    };
    let id_base = place.host.network.plan().id_base(place.slot.index);
    place
        .cgroup
        .create(&limits)
        .and_then(|()| place.cgroup.delegate(id_base))
        .and_then(|()| place.cgroup.admit(root.pid()))
        .map_err(|error| trouble("its cgroup", &error))?;
    let launched = root
        .launch(place.folder, &place.host.agent, &encode_boot(&place.boot()))
        .await
        .map_err(|error| trouble("launch", &error))?;
    debug!(id = %place.record.id, steps = ?launched.steps, "launched");
    let process = Watched::new(launched.pid).map_err(|error| trouble("it ended at once", &error))?;
    // The socket has been listening since before the agent ran: this waits for its first answer.
    let guest = Guest::connect(place.folder).await?;
    let disk = open_disk(&disk_device).await.map_err(|error| trouble("its disk", &error))?;
    let body = Body::Container(Container { disk_device, disk });
    Ok(Launched { process, pid: launched.pid, guest, body })
}

/// One that runs since before this start.
pub(super) async fn find(machine: &MachineRecord, folder: &Path) -> Result<(Guest, Body), Error> {
    let guest = Guest::connect(folder).await?;
    let disk_device = machine.disk_device.clone();
    let disk = open_disk(&disk_device).await.map_err(|error| {
        let kind = if is_shortage(&error) { ErrorKind::Unavailable } else { ErrorKind::SandboxFailed };
        Error::new(kind, format!("its disk cannot be reached: {error}"))
    })?;
    Ok((guest, Body::Container(Container { disk_device, disk })))
}

pub(super) async fn open_disk(device: &str) -> io::Result<Arc<MountedDisk>> {
    let device = device.to_owned();
    let opened = tokio::task::spawn_blocking(move || MountedDisk::open(&device));
    opened.await.map_err(io::Error::other).flatten().map(Arc::new)
}

/// Ends its commands and terminals at once, before the agent that knows of them: so what it tells of them last is how they ended.
pub(super) fn kill_commands(cgroup: &Cgroup) {
    for pid in cgroup.processes_below().unwrap_or_default().into_iter().filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

pub(super) async fn ask_to_end(cgroup: &Cgroup) {
    let asked = cgroup.processes_below().unwrap_or_default();
    for pid in asked.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    let deadline = tokio::time::Instant::now() + GRACE;
    while tokio::time::Instant::now() < deadline
        && cgroup.processes_below().is_ok_and(|left| !left.is_empty())
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes the empty file `target` the same as its disk, with everything in it standing still.
pub(super) async fn capture(
    host: &Host,
    cgroup: &Cgroup,
    root: &File,
    folder: &Path,
    target: &File,
) -> Result<Captured, Error> {
    let source = File::open(folder.join(DISK)).map_err(|error| not_taken(&error))?;
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (cgroup_parent, cgroup_name) = cgroup.names();
    let capture = Capture {
        cgroup_parent,
        cgroup_name,
        rest_within_ms: milliseconds(REST_WITHIN),
        rest_at_most_ms: milliseconds(REST_AT_MOST),
    };
    let launcher = host.launcher().map_err(|error| not_taken(&error))?;
    let captured =
        warren_runtime_container::capture(&launcher, &capture, root.as_fd(), source.as_fd(), target.as_fd());
    let captured = captured.await.map_err(|error| not_taken(&error))?;
    Ok(Captured { quiesced: captured.quiesced, pause_us: captured.pause_us, machine: None })
}

pub(super) async fn resize(cgroup: &Cgroup, size: Size, cpus: &[u32]) -> Result<(), Error> {
    let (cgroup, cpus) = (cgroup.clone(), cpus.to_vec());
    let memory = u64::from(size.memory_mb) << 20;
    // Taking memory back can take a while.
    let resized = tokio::task::spawn_blocking(move || cgroup.resize(size.cpu_count, &cpus, memory));
    resized
        .await
        .unwrap_or_else(|error| Err(CgroupError::Interrupted(error.to_string())))
        .map_err(not_resized)
}
