//! Machines of each kind, booted once and kept as they were when their agent was ready. New ones are restored from them.
//!
//! ```text
//!   <volume>/machines/<kind>-<disk MiB>/    see `warren_runtime_vm::snapshot`
//!   <volume>/machines/<…>.unfinished/       being made
//! ```
//!
//! A kind is everything the state of a machine depends on: QEMU, kernel, agent, template, size. What is of a kind that this
//! node would not make any more is removed at its start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use tracing::{info, warn};
use warren_runtime_vm::machine::Machine;
use warren_runtime_vm::plan::{AGENT_SOCKET, CONTROL_SOCKET};
use warren_runtime_vm::snapshot::{self, DISK, MEMORY, Made};
use warren_types::{Error, ErrorKind, Size};

use super::Vms;
use super::qemu::{self, From, Wanted};
use crate::disk::{self, run_command};
use crate::registry::Host;
use crate::sandbox::machine::end_processes;

/// What the names of cgroups begin with whose machines have no sandbox. No sandbox's does.
pub(crate) const CGROUPS: &str = "machine-";

/// All templates of this node.
pub(crate) struct Templates {
    folder: PathBuf,
    /// By name; a cell is filled by the first who asks.
    ready: Mutex<BTreeMap<String, Arc<OnceCell<Arc<Template>>>>>,
}

/// A machine that nobody has yet, at rest.
pub(crate) struct Template {
    pub(crate) folder: PathBuf,
    pub(crate) made: Made,
    pub(crate) state: Vec<u8>,
}

impl Templates {
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, ready: Mutex::default() })
    }

    /// Where machines wait that have no sandbox yet.
    pub(super) fn waiting(&self) -> PathBuf {
        self.folder.join("waiting")
    }

    /// Removes those of kinds that are not made any more, and what is half made.
    pub(crate) fn sweep(&self, wanted: impl Fn(&Made) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let path = entry.path();
            let kept = snapshot::made_with(&path).is_ok_and(|made| wanted(&made));
            if !kept && let Err(error) = fs::remove_dir_all(&path) {
                warn!(%error, path = %path.display(), "could not remove a machine that is not of use any more");
            }
        }
        Ok(())
    }

    /// Removes those over a template of disks that nothing is made from any more.
    pub(super) fn forget(&self, template_digest: &str) {
        let is_over = |folder: &Path| {
            snapshot::made_with(folder).is_ok_and(|made| made.template_digest == template_digest)
        };
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        for folder in fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if is_over(&folder) {
                ready.retain(|name, _| !folder.ends_with(name));
                let _ = fs::remove_dir_all(&folder);
            }
        }
    }

    /// The template of machines of that size over that template of disks; booted now if there is none.
    pub(crate) async fn ensure(
        &self,
        host: &Host,
        vms: &Vms,
        size: Size,
        template_digest: &str,
    ) -> Result<Arc<Template>, Error> {
        let made = vms.made(size, template_digest);
        let name = format!("{}-{}", made.key(), size.disk_mb);
        let cell = {
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            ready.entry(name.clone()).or_default().clone()
        };
        let folder = self.folder.join(&name);
        cell.get_or_try_init(async || {
            match snapshot::open(&folder, &made) {
                Ok(state) => return Ok(Arc::new(Template { folder, made, state })),
                Err(error) => info!(name, reason = %error, "booting a machine for others to start from"),
            }
            let unfinished = self.folder.join(format!("{name}.unfinished"));
            let made_now = make(host, vms, size, &made, &name, &unfinished).await;
            let placed = match made_now {
                Ok(()) => replace(&unfinished, &folder).map_err(|error| no_machine(&error)),
                Err(error) => Err(error),
            };
            let _ = fs::remove_dir_all(&unfinished);
            placed?;
            let state = snapshot::open(&folder, &made).map_err(|error| no_machine(&error))?;
            Ok(Arc::new(Template { folder, made, state }))
        })
        .await
        .cloned()
    }
}

impl Template {
    /// Makes memory and disk in `folder` share all blocks of these.
    pub(crate) async fn share(self: &Arc<Self>, folder: &Path) -> io::Result<()> {
        let (template, to) = (self.clone(), folder.to_owned());
        let shared = tokio::task::spawn_blocking(move || {
            [MEMORY, DISK]
                .iter()
                .try_for_each(|name| disk::reflink(&File::open(template.folder.join(name))?, &to.join(name)))
        });
        shared.await.map_err(io::Error::other)?
    }
}

/// Ends machines of this node that belong to no sandbox.
pub(crate) async fn end_strays(host: &Host) {
    for name in host.cgroups().iter().filter(|name| name.starts_with(CGROUPS)) {
        end_processes(&host.cgroup(name)).await;
    }
}

fn no_machine(error: &dyn std::fmt::Display) -> Error {
    Error::unavailable(format!("no virtual machine could be made to start from: {error}"))
}

fn replace(unfinished: &Path, folder: &Path) -> io::Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::rename(unfinished, folder)
}

/// Boots a machine in `unfinished` and leaves it there as it was when its agent was ready.
async fn make(
    host: &Host,
    vms: &Vms,
    size: Size,
    made: &Made,
    name: &str,
    unfinished: &Path,
) -> Result<(), Error> {
    let begun = std::time::Instant::now();
    let _ = fs::remove_dir_all(unfinished);
    let blank = host.disks.blank(size.disk_mb).await.map_err(|error| no_machine(&error))?;
    fs::create_dir(unfinished)
        .and_then(|()| disk::reflink(&File::open(blank)?, &unfinished.join(DISK)))
        .map_err(|error| no_machine(&error))?;
    let slot = host.network.take().await.map_err(|error| no_machine(&error))?;
    let cgroup = host.cgroup(&format!("{CGROUPS}{name}"));
    let rested = async {
        cgroup
            .create(&qemu::limits(size.cpu_count, size.memory_mb, Vec::new()))
            .map_err(|error| no_machine(&error))?;
        let wanted = Wanted {
            folder: unfinished,
            cgroup: &cgroup,
            slot: &slot,
            hardware: made.hardware.clone(),
            template_image: host.disks.template_image(&made.template_digest),
            from: From::Boot,
        };
        let mut qemu = qemu::start(host, vms, &wanted).await?;
        let state = suspend(&mut qemu.control).await?;
        // With nothing more written by it.
        let _ = qemu.control.quit().await;
        qemu.process.ended().await;
        Ok::<_, Error>(state)
    };
    let rested = rested.await;
    end_processes(&cgroup).await;
    host.network.retire(slot);
    let state = rested?;
    for socket in [AGENT_SOCKET, CONTROL_SOCKET] {
        let _ = fs::remove_file(unfinished.join(socket));
    }
    tidy(unfinished).await.map_err(|error| no_machine(&error))?;
    snapshot::complete(unfinished, made, &state).map_err(|error| no_machine(&error))?;
    info!(name, ms = begun.elapsed().as_millis(), "a machine to start others from is ready");
    Ok(())
}

/// Stops a machine for good and returns the state of its devices.
pub(crate) async fn suspend(control: &mut Machine) -> Result<Vec<u8>, Error> {
    let failed = |error: warren_runtime_vm::MachineError| {
        Error::new(ErrorKind::SandboxFailed, format!("the virtual machine could not be stopped: {error}"))
    };
    control.stop().await.map_err(failed)?;
    let (state, (), _) = control.snapshot(async || Ok(())).await.map_err(failed)?;
    Ok(state)
}

/// Writes the memory anew in one piece and with holes: what a guest has written page by page lies all over the drive, and
/// every share of it would have to count every piece.
async fn tidy(folder: &Path) -> io::Result<()> {
    let (memory, unfinished) = (folder.join(MEMORY), folder.join("memory.unfinished"));
    let args = ["--sparse=always", "--reflink=never"].map(std::ffi::OsStr::new);
    run_command("cp", "coreutils", &[&args[..], &[memory.as_os_str(), unfinished.as_os_str()]].concat())
        .await
        .map_err(io::Error::other)?;
    File::open(&unfinished)?.sync_all()?;
    fs::rename(unfinished, memory)?;
    File::open(folder.join(DISK))?.sync_all()
}
