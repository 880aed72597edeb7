//! One virtual machine: started, connected to, ended.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use rustix::process::{Pid, Signal};
use tracing::{debug, info};
use warren_guest_api::boot::Boot;
use warren_guest_api::machine::{ENTROPY_BYTES, Identity, Renew, Renewed};
use warren_runtime::cgroup::{Cgroup, Limits};
use warren_runtime::process::Watched;
use warren_runtime_vm::machine::{Complaints, Machine, make_memory, state_file};
use warren_runtime_vm::proof::chain;
use warren_runtime_vm::snapshot::{DISK, MEMORY};
use warren_runtime_vm::{Hardware, Launch, Start};
use warren_types::{Error, ErrorKind};

use super::{Vms, stage_dir};
use crate::guest::Guest;
use crate::registry::Host;
use crate::sandbox::machine::{IO_BYTES_PER_SECOND, IO_OPERATIONS_PER_SECOND};
use warren_network::Slot;

/// Memory of QEMU itself, on top of its guest's: translated code, buffers, its program.
const OVERHEAD_MB: u32 = 512;
/// Threads and processes of a QEMU.
const MAX_PROCESSES: u32 = 256;
/// A restored machine that has not come up by then never will.
const RESTORE_DEADLINE: Duration = Duration::from_secs(30);
/// Of making a machine its sandbox's own.
const RENEW_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for a killed QEMU to be gone.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// A boot that hangs is tried again as often as this in all.
const BOOTS: u32 = 2;

/// A machine to start. Its files are in `folder`; its cgroup is there, with limits.
pub(crate) struct Wanted<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) slot: &'a Slot,
    pub(crate) hardware: Hardware,
    pub(crate) template_image: PathBuf,
    pub(crate) from: From,
}

/// What it begins with.
pub(crate) enum From {
    /// Its kernel; on whatever the disk has.
    Boot,
    /// The state of its devices; memory and disk are of the same moment.
    State(Vec<u8>),
}

/// A QEMU that runs.
pub(crate) struct Qemu {
    pub(crate) control: Machine,
    pub(crate) process: Watched,
    pub(crate) pid: i32,
}

/// Limits of the cgroup of a machine with that much for its guest.
pub(crate) fn limits(cpu_count: u32, memory_mb: u32, cpus: Vec<u32>) -> Limits {
    Limits {
        cpu_count,
        cpus,
        memory_bytes: memory_limit(memory_mb),
        pids: MAX_PROCESSES,
        // QEMU itself throttles, so that its guest sees a slow disk and not a stuck one.
        disk_device: None,
        io_bytes_per_second: IO_BYTES_PER_SECOND,
        io_operations_per_second: IO_OPERATIONS_PER_SECOND,
    }
}

/// What a cgroup of a machine may hold when its guest has that much.
pub(crate) fn memory_limit(memory_mb: u32) -> u64 {
    u64::from(memory_mb + OVERHEAD_MB) << 20
}

fn trouble(what: &str) -> impl FnOnce(&dyn std::error::Error) -> Error {
    move |error| {
        Error::new(
            ErrorKind::SandboxFailed,
            format!("the virtual machine could not be started: {what}: {}", chain(error)),
        )
    }
}

/// Starts a machine and returns when its agent waits for a connection. On failure its processes have ended.
pub(crate) async fn start(host: &Host, vms: &Vms, wanted: &Wanted<'_>) -> Result<Qemu, Error> {
    let mut boots = 0;
    loop {
        let started = start_once(host, vms, wanted).await;
        boots += 1;
        match (started, &wanted.from) {
            (Err(error), From::Boot) if boots < BOOTS => {
                info!(%error, "a virtual machine did not come up; starting it again");
            }
            (started, _) => return started,
        }
    }
}

async fn start_once(host: &Host, vms: &Vms, wanted: &Wanted<'_>) -> Result<Qemu, Error> {
    let memory_file = wanted.folder.join(MEMORY);
    let state = match &wanted.from {
        From::Boot => {
            let _ = std::fs::remove_file(&memory_file);
            make_memory(&memory_file, wanted.hardware.memory_bytes())
                .map_err(|error| trouble("its memory")(&error))?;
            None
        }
        From::State(state) => Some(state_file(state).map_err(|error| trouble("its state")(&error))?),
    };
    let (cgroup_parent, cgroup_name) = wanted.cgroup.names();
    let launch = Launch {
        user: host.network.plan().id_base(wanted.slot.index),
        cgroup_parent,
        cgroup_name,
        io_bytes_per_second: IO_BYTES_PER_SECOND,
        io_operations_per_second: IO_OPERATIONS_PER_SECOND,
        emulator_tree: vms.emulator.tree.clone(),
        hardware: wanted.hardware.clone(),
        template_image: wanted.template_image.clone(),
        disk_image: wanted.folder.join(DISK),
        memory_file,
        run_dir: wanted.folder.to_owned(),
        stage_dir: stage_dir(&host.data_dir),
        mtu: warren_network::mtu(),
        start: if state.is_some() { Start::Restore } else { vms.boot() },
    };
    let complaints = Complaints::new().map_err(|error| trouble("its log")(&error))?;
    let launcher = host.launcher().map_err(|error| trouble("the launcher does not run")(&error))?;
    let launched = warren_runtime_vm::launch(
        &launcher,
        &launch,
        wanted.slot.namespace(),
        complaints.descriptor(),
        state.as_ref().map(std::os::fd::AsFd::as_fd),
    )
    .await
    .map_err(|error| trouble("launch")(&error))?;
    debug!(steps = ?launched.steps, "launched");
    let deadline = if state.is_some() { RESTORE_DEADLINE } else { vms.boot_deadline() };
    let process = Watched::new(launched.pid).map_err(|error| trouble("it ended at once")(&error))?;
    match come_up(wanted.folder, &process, deadline).await {
        Ok(control) => Ok(Qemu { control, process, pid: launched.pid }),
        Err(error) => {
            kill(launched.pid);
            // Its network is free again only then.
            let _ = tokio::time::timeout(END_DEADLINE, process.ended()).await;
            Err(match complaints.read() {
                said if said.is_empty() => error,
                said => Error::new(error.kind, format!("{}; QEMU said: {said}", error.message)),
            })
        }
    }
}

async fn come_up(folder: &Path, process: &Watched, deadline: Duration) -> Result<Machine, Error> {
    let failed = |what: String| Error::new(ErrorKind::SandboxFailed, what);
    let came_up = async {
        let mut control = Machine::connect(folder).await?;
        control.up(deadline).await.map(|()| control)
    };
    tokio::select! {
        () = process.ended() => Err(failed("the virtual machine ended at once".into())),
        came_up = tokio::time::timeout(deadline, came_up) => match came_up {
            Ok(came_up) => came_up.map_err(|error| trouble("it did not come up")(&error)),
            Err(_) => Err(failed(format!("the virtual machine was silent for {} s", deadline.as_secs()))),
        },
    }
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Makes a machine its sandbox's own, before anybody else may ask it for anything.
pub(crate) async fn renew(guest: &Guest, boot: Boot, identity: Identity) -> Result<Renewed, Error> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::internal(format!("the host has no randomness to give: {error}")))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let renew = Renew {
        boot,
        identity,
        hostname: "sandbox".into(),
        unix_time_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
        entropy,
        mtu: warren_network::mtu(),
    };
    let renewed = guest.json::<Renewed>(Method::POST, "/v1/renew", Some(&renew));
    let failed = |why: String| Error::new(ErrorKind::SandboxFailed, why);
    match tokio::time::timeout(RENEW_DEADLINE, renewed).await {
        // Whatever the guest's words for it, it is the sandbox that failed, not what was asked for.
        Ok(renewed) => renewed.map_err(|error| failed(error.message)),
        Err(_) => Err(failed("the virtual machine did not become the sandbox's own in time".to_owned())),
    }
}
