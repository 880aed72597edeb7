//! Machines of each kind, booted once and kept as they were when their agent was ready. New ones are restored from them.
//!
//! ```text
//!   <volume>/machines/<kind>-<disk MiB>/    see `warren_runtime_vm::snapshot`
//!   <volume>/machines/<…>.unfinished/       being made
//! ```
//!
//! Memory and disk are compared with their digests when one is first used after a start, and whenever the files have changed
//! since; and once more when a machine that was started from one does not come up. What is damaged is made anew, and the fresh
//! machines that wait end with it.
//!
//! A kind is everything the state of a machine depends on: QEMU, kernel, agent, template, size. What is of a kind that this
//! node would not make any more is removed at its start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use tracing::{info, warn};
use warren_runtime_vm::machine::Machine;
use warren_runtime_vm::plan::{AGENT_SOCKET, CONTROL_SOCKET};
use warren_runtime_vm::snapshot::{self, Contents, DISK, MEMORY, Made, SnapshotError};
use warren_types::{Error, ErrorKind, Size};

use super::Vms;
use super::qemu::{self, From, Wanted};
use crate::disk::verified::Verified;
use crate::disk::{self, run_command};
use crate::registry::Host;
use crate::sandbox::machine::end_processes;

/// What the names of cgroups begin with whose machines have no sandbox. No sandbox's does.
pub(crate) const CGROUPS: &str = "machine-";

/// Templates made in a row that turn out to be damaged before the drive is not trusted any more.
const TRIES: u32 = 3;

/// All templates of this node.
pub(crate) struct Templates {
    folder: PathBuf,
    ready: Mutex<Cells>,
}

/// By name; a cell is filled by the first who asks.
type Cells = BTreeMap<String, Arc<OnceCell<Arc<Template>>>>;

/// A machine that nobody has yet, at rest.
pub(crate) struct Template {
    folder: PathBuf,
    pub(crate) made: Made,
    pub(crate) state: Vec<u8>,
    contents: Contents,
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
        let mut ready = self.lock();
        for folder in fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if is_over(&folder) {
                ready.retain(|name, _| !folder.ends_with(name));
                let _ = fs::remove_dir_all(&folder);
            }
        }
    }

    /// Makes memory and disk in `folder` share all blocks of those of a machine of that size over that template of disks, and
    /// returns it; booted now if there is none.
    pub(crate) async fn share(
        &self,
        host: &Host,
        vms: &Vms,
        size: Size,
        template_digest: &str,
        folder: &Path,
    ) -> Result<Arc<Template>, Error> {
        for _ in 0..TRIES {
            let template = self.ensure(host, vms, size, template_digest).await?;
            match template.share(host, folder).await {
                Ok(true) => return Ok(template),
                Ok(false) => self.discard(host, vms, &template).await,
                Err(error) => return Err(Error::unavailable(format!("no disk could be made: {error}"))),
            }
        }
        Err(no_machine(&"what was written is not what is read; look at the drive of this node's volume"))
    }

    /// A machine started from the template of that kind does not come up. Whether the template was to blame, and is gone now.
    pub(crate) async fn doubt(&self, host: &Host, vms: &Vms, size: Size, template_digest: &str) -> bool {
        let name = name_of(&vms.made(size, template_digest), size);
        let template = self.lock().get(&name).and_then(|cell| cell.get().cloned());
        let Some(template) = template else { return false };
        match template.is_whole(host, Known::Forgotten).await {
            Ok(true) => false,
            Ok(false) => {
                self.discard(host, vms, &template).await;
                true
            }
            Err(error) => {
                warn!(%error, name, "a machine that others are started from cannot be read");
                false
            }
        }
    }

    /// Removes a template that is damaged, and what waits that was started from it; unless that has been done.
    async fn discard(&self, host: &Host, vms: &Vms, template: &Arc<Template>) {
        {
            let mut ready = self.lock();
            let is_it =
                |cell: &Arc<OnceCell<_>>| cell.get().is_some_and(|found| Arc::ptr_eq(found, template));
            let Some(name) = ready.iter().find(|(_, cell)| is_it(cell)).map(|(name, _)| name.clone()) else {
                return;
            };
            say_damaged(&name, &"its memory or its disk is not what was written");
            ready.remove(&name);
            // With nobody looking: whoever asks next finds nothing and makes another.
            let _ = fs::remove_dir_all(&template.folder);
        }
        vms.waiting.forget_made(host, &template.made).await;
    }

    /// The template of machines of that size over that template of disks; booted now if there is none that is whole.
    async fn ensure(
        &self,
        host: &Host,
        vms: &Vms,
        size: Size,
        template_digest: &str,
    ) -> Result<Arc<Template>, Error> {
        let made = vms.made(size, template_digest);
        let name = name_of(&made, size);
        let cell = self.lock().entry(name.clone()).or_default().clone();
        let folder = self.folder.join(&name);
        cell.get_or_try_init(async || {
            match Template::open(&folder, &made) {
                Ok(template) => match template.is_whole(host, Known::Trusted).await {
                    Ok(true) => return Ok(Arc::new(template)),
                    Ok(false) => say_damaged(&name, &"its memory or its disk is not what was written"),
                    Err(error) => say_damaged(&name, &error),
                },
                Err(error @ (SnapshotError::Foreign { .. } | SnapshotError::Format { .. })) => {
                    info!(name, reason = %error, "another machine for others to start from is needed");
                }
                Err(error) if folder.exists() => say_damaged(&name, &error),
                Err(_) => {}
            }
            info!(name, "booting a machine for others to start from");
            let unfinished = self.folder.join(format!("{name}.unfinished"));
            let made_now = make(host, vms, size, &made, &name, &unfinished).await;
            let placed = match made_now {
                Ok(()) => replace(&unfinished, &folder).map_err(|error| no_machine(&error)),
                Err(error) => Err(error),
            };
            let _ = fs::remove_dir_all(&unfinished);
            placed?;
            Template::open(&folder, &made).map(Arc::new).map_err(|error| no_machine(&error))
        })
        .await
        .cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Cells> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is believed of files that were read before and have not changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Trusted,
    Forgotten,
}

impl Template {
    fn open(folder: &Path, made: &Made) -> Result<Self, SnapshotError> {
        let opened = snapshot::open(folder, made)?;
        Ok(Self {
            folder: folder.to_owned(),
            made: made.clone(),
            state: opened.state,
            contents: opened.contents,
        })
    }

    /// Its files that are compared as a whole, with what they must hold.
    fn files(&self) -> [(&'static str, PathBuf, String); 2] {
        let Contents { memory, disk } = self.contents.clone();
        [(MEMORY, self.folder.join(MEMORY), memory), (DISK, self.folder.join(DISK), disk)]
    }

    /// Compares memory and disk with their digests.
    async fn is_whole(&self, host: &Host, known: Known) -> io::Result<bool> {
        let (files, verified) = (self.files(), host.checkpoints.verified.clone());
        on_a_thread(move || {
            for (_, path, digest) in files {
                let file = File::open(path)?;
                if known == Known::Forgotten {
                    verified.forget(&file)?;
                }
                if !verified.check(&file, &digest, &AtomicBool::new(false))? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// Makes memory and disk in `folder` share all blocks of these, unless these are damaged.
    async fn share(&self, host: &Host, folder: &Path) -> io::Result<bool> {
        let (files, to, verified) = (self.files(), folder.to_owned(), host.checkpoints.verified.clone());
        on_a_thread(move || {
            for (name, path, digest) in files {
                let file = File::open(path)?;
                if !verified.check(&file, &digest, &AtomicBool::new(false))? {
                    return Ok(false);
                }
                disk::reflink(&file, &to.join(name))?;
            }
            Ok(true)
        })
        .await
    }
}

/// Reads files; one that is not there holds nothing.
async fn on_a_thread(check: impl FnOnce() -> io::Result<bool> + Send + 'static) -> io::Result<bool> {
    match tokio::task::spawn_blocking(check).await.map_err(io::Error::other).flatten() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        checked => checked,
    }
}

fn name_of(made: &Made, size: Size) -> String {
    format!("{}-{}", made.key(), size.disk_mb)
}

fn say_damaged(name: &str, reason: &dyn std::fmt::Display) {
    warn!(name, %reason, "a machine that others are started from is damaged and is made anew");
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
    let (folder, verified) = (unfinished.to_owned(), host.checkpoints.verified.clone());
    let measured = tokio::task::spawn_blocking(move || measure(&folder, &verified)).await;
    let contents = measured.map_err(io::Error::other).flatten().map_err(|error| no_machine(&error))?;
    snapshot::complete(unfinished, made, &state, contents).map_err(|error| no_machine(&error))?;
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

fn measure(folder: &Path, verified: &Verified) -> io::Result<Contents> {
    let digest = |name| verified.measure(&File::open(folder.join(name))?, &AtomicBool::new(false));
    Ok(Contents { memory: digest(MEMORY)?, disk: digest(DISK)? })
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
