//! Virtual machines: what all those of this node share.
//!
//! ```text
//!   <cache>/emulators/, kernels/         QEMU and kernels, see `warren_runtime_vm`
//!   <cache>/kvm.json                     whether KVM works here, as a boot has shown
//!   <cache>/initramfs/                   the guest agent and the kernel's modules
//!   <volume>/machines/<kind>/            a machine of each kind, booted once; see [`template`]
//! ```
//!
//! - [`qemu`]: one of them: started, connected to, ended.
//! - [`template`]: what new ones are restored from.
//! - [`waiting`]: a few that have been, ahead of their use.

pub(crate) mod qemu;
pub(crate) mod template;
pub(crate) mod waiting;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::info;
use warren_runtime::Launcher;
use warren_runtime::cgroup::Hierarchies;
use warren_runtime_vm::emulator::{self, Emulator};
use warren_runtime_vm::kernel::{self, Kernel};
use warren_runtime_vm::proof::{self, Proof, chain};
use warren_runtime_vm::snapshot::{self, Made};
use warren_runtime_vm::{Accelerator, Hardware, Launch, Start, initramfs};
use warren_types::{Error, ErrorKind, Isolation, Size};

use crate::config::{Config, StartError};
use crate::disk::{self, Disks};
use crate::registry::Host;
use crate::sandbox::machine::{IO_BYTES_PER_SECOND, IO_OPERATIONS_PER_SECOND};
use crate::template::cache_dir;
use warren_network::Pool;

/// Memory of the machine that shows whether KVM works.
const TRIAL_MB: u32 = 512;
/// Machines started at the same time under KVM.
const KVM_STARTS: usize = 8;

/// What all virtual machines of this node share.
pub(crate) struct Vms {
    emulator: Emulator,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Of kernel and initramfs.
    boot_digest: String,
    pub(crate) accelerator: Accelerator,
    pub(crate) templates: template::Templates,
    pub(crate) waiting: waiting::Stock,
    /// Starts under way at the same time.
    starting: Semaphore,
}

/// What a trial machine is started with.
pub(crate) struct Bench<'a> {
    pub(crate) config: &'a Config,
    pub(crate) disks: &'a Disks,
    pub(crate) agent: &'a Path,
    pub(crate) launcher: &'a Launcher,
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) cgroup_parent: &'a str,
    pub(crate) network: &'a Pool,
    /// Digests of all templates.
    pub(crate) templates: &'a BTreeMap<String, String>,
}

/// What sandboxes get that do not ask, and the machines if this node has any.
pub(crate) async fn choose(bench: &Bench<'_>) -> Result<(Isolation, Option<Vms>), StartError> {
    let wanted = bench.config.isolation;
    if wanted == Some(Isolation::Container) {
        return Ok((Isolation::Container, None));
    }
    let vms = match Vms::find(bench).await {
        Ok(vms) => vms,
        Err(reason) if wanted == Some(Isolation::Vm) => return Err(StartError::Machines(reason)),
        Err(reason) => {
            info!(reason, "sandboxes are containers; there are no virtual machines here");
            return Ok((Isolation::Container, None));
        }
    };
    let isolation = wanted.unwrap_or(match vms.accelerator {
        Accelerator::Kvm => Isolation::Vm,
        Accelerator::Emulation => Isolation::Container,
    });
    info!(%isolation, accelerator = ?vms.accelerator, qemu = vms.emulator.version, "virtual machines can be had");
    Ok((isolation, Some(vms)))
}

impl Vms {
    /// Finds or makes all that machines need, and tries KVM if that has not been done.
    async fn find(bench: &Bench<'_>) -> Result<Self, String> {
        let cache = cache();
        let emulators = emulators_of(&cache);
        let emulator = tokio::task::spawn_blocking(move || emulator::ensure(&emulators));
        let emulator = emulator.await.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?;
        if kernel::find(&kernels_of(&cache)).is_none() {
            info!("fetching a kernel for virtual machines from this host's package archive");
        }
        let kernel = kernel::ensure(&kernels_of(&cache)).await.map_err(|error| chain(&error))?;
        let (initramfs, boot_digest) = ensure_initramfs(&cache, bench.agent, &kernel)
            .map_err(|error| format!("the initramfs could not be written: {error}"))?;
        let folder = bench.disks.volume().join("machines");
        let templates =
            template::Templates::open(folder).map_err(|error| format!("no folder for machines: {error}"))?;
        let mut vms = Self {
            emulator,
            kernel: kernel.image,
            initramfs,
            boot_digest,
            accelerator: Accelerator::Emulation,
            templates,
            waiting: waiting::Stock::default(),
            starting: Semaphore::new(1),
        };
        if Path::new("/dev/kvm").exists() {
            let circumstances = proof::circumstances(&vms.emulator.digest, &kernel.package);
            if vms.prove(bench, &proof_of(&cache), circumstances).await {
                vms.accelerator = Accelerator::Kvm;
            }
        }
        vms.starting = Semaphore::new(match vms.accelerator {
            Accelerator::Kvm => KVM_STARTS,
            // It is all computing: more at once would only make each slower.
            Accelerator::Emulation => std::thread::available_parallelism().map_or(1, usize::from),
        });
        let swept = vms.templates.sweep(|made| {
            let Hardware { cpu_count, memory_mb, .. } = made.hardware;
            bench.templates.contains_key(&made.template_digest)
                && *made == vms.made(Size { cpu_count, memory_mb, disk_mb: 0 }, &made.template_digest)
        });
        swept.map_err(|error| format!("the folder of machines cannot be read: {error}"))?;
        Ok(vms)
    }

    /// Ends and removes all machines over a template that nothing is made from any more.
    pub(crate) async fn forget(&self, host: &Host, template_digest: &str) {
        self.waiting.forget(host, template_digest).await;
        self.templates.forget(template_digest);
    }

    /// Whether a guest boots and is restored under KVM; tried once, then remembered.
    async fn prove(&self, bench: &Bench<'_>, file: &Path, circumstances: String) -> bool {
        if let Some(known) = proof::recall(file, &circumstances) {
            return known.outcome.is_ok();
        }
        info!(seconds = proof::KVM_DEADLINE.as_secs(), "trying whether KVM works here");
        let outcome = match self.try_kvm(bench).await {
            Ok(outcome) => outcome,
            // Nothing was learnt of KVM.
            Err(reason) => {
                info!(reason, "KVM could not be tried");
                return false;
            }
        };
        info!(?outcome, "KVM was tried");
        let proof = Proof { circumstances, outcome };
        if let Err(error) = proof::remember(file, &proof) {
            info!(%error, "what the trial of KVM has shown could not be kept");
        }
        proof.outcome.is_ok()
    }

    async fn try_kvm(&self, bench: &Bench<'_>) -> Result<Result<u64, String>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let folder = tempfile_in(bench.disks.volume()).map_err(|error| text(&error))?;
        let blank = bench.disks.blank(warren_types::size::MIN_DISK_MB).await.map_err(|error| text(&error))?;
        let disk_image = folder.path().join(snapshot::DISK);
        disk::reflink(&fs::File::open(blank).map_err(|error| text(&error))?, &disk_image)
            .map_err(|error| text(&error))?;
        let memory_file = folder.path().join(snapshot::MEMORY);
        let hardware = Hardware { accelerator: Accelerator::Kvm, cpu_count: 1, memory_mb: TRIAL_MB };
        warren_runtime_vm::machine::make_memory(&memory_file, hardware.memory_bytes())
            .map_err(|error| text(&error))?;
        let slot = bench.network.take().await.map_err(|error| text(&error))?;
        let name = "kvm-trial";
        let group = bench.hierarchies.group(bench.cgroup_parent, name);
        let tried = match group.create(&qemu::limits(1, TRIAL_MB, Vec::new())) {
            Ok(()) => {
                let launch = Launch {
                    user: bench.network.plan().id_base(slot.index),
                    cgroup_parent: bench.cgroup_parent.to_owned(),
                    cgroup_name: name.to_owned(),
                    io_bytes_per_second: IO_BYTES_PER_SECOND,
                    io_operations_per_second: IO_OPERATIONS_PER_SECOND,
                    emulator_tree: self.emulator.tree.clone(),
                    hardware,
                    template_image: bench.disks.template_image(bench.disks.template()),
                    disk_image,
                    memory_file,
                    run_dir: folder.path().to_owned(),
                    stage_dir: stage_dir(&bench.config.data_dir),
                    mtu: warren_network::mtu(),
                    start: self.boot(),
                };
                let lived = proof::live(bench.launcher, &launch, slot.namespace(), proof::KVM_DEADLINE).await;
                Ok(lived.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)))
            }
            Err(error) => Err(text(&error)),
        };
        crate::sandbox::machine::end_processes(&group).await;
        bench.network.retire(slot);
        tried
    }

    fn boot(&self) -> Start {
        Start::Boot { kernel: self.kernel.clone(), initramfs: self.initramfs.clone() }
    }

    pub(crate) fn hardware(&self, size: Size) -> Hardware {
        Hardware { accelerator: self.accelerator, cpu_count: size.cpu_count, memory_mb: size.memory_mb }
    }

    /// What a machine booted now is made of.
    pub(crate) fn made(&self, size: Size, template_digest: &str) -> Made {
        Made {
            hardware: self.hardware(size),
            emulator_digest: self.emulator.digest.clone(),
            boot_digest: self.boot_digest.clone(),
            template_digest: template_digest.to_owned(),
        }
    }

    /// Whether memory of a machine of that make can be gone on with. It has its kernel and agent in it, so those may be
    /// others by now.
    pub(crate) fn check(&self, made: &Made) -> Result<(), String> {
        if made.emulator_digest != self.emulator.digest {
            return Err("it is of another QEMU".into());
        }
        if made.hardware.accelerator != self.accelerator {
            return Err("it ran under another accelerator".into());
        }
        Ok(())
    }

    /// One's turn to start a machine; over when dropped.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.starting.acquire().await.map_err(|_| Error::unavailable("the node is stopping"))
    }

    /// How long a machine gets to come up.
    pub(crate) fn boot_deadline(&self) -> Duration {
        match self.accelerator {
            Accelerator::Kvm => proof::KVM_DEADLINE,
            Accelerator::Emulation => proof::EMULATION_DEADLINE,
        }
    }
}

/// What this machine has for virtual machines.
pub(crate) struct Known {
    /// QEMU's version, or why there is none.
    pub(crate) emulator: Result<String, String>,
    /// The kernel's package, if there is one.
    pub(crate) kernel: Option<String>,
    /// What the trial of KVM has shown, if one was made: milliseconds of a boot, or why there was none.
    pub(crate) proof: Option<Result<u64, String>>,
}

/// For the report of `doctor`; blocks.
pub(crate) fn known() -> Known {
    let cache = cache();
    let emulator = emulator::installed().map_err(|error| chain(&error));
    let kernel = kernel::find(&kernels_of(&cache)).map(|kernel| kernel.package);
    let proof = match (emulator::find(&emulators_of(&cache)), &kernel) {
        (Ok(Some(emulator)), Some(kernel)) => {
            proof::recall(&proof_of(&cache), &proof::circumstances(&emulator.digest, kernel))
        }
        _ => None,
    };
    Known { emulator, kernel, proof: proof.map(|proof| proof.outcome) }
}

/// The initramfs with that agent and that kernel's modules, written if it is not there, and the digest of kernel and
/// initramfs.
fn ensure_initramfs(cache: &Path, agent: &Path, kernel: &Kernel) -> io::Result<(PathBuf, String)> {
    // The agent's folder has the name of its digest.
    let agent_digest = agent.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let folder = cache.join("initramfs").join(format!("{agent_digest}-{}", kernel.package.replace('/', "_")));
    let (archive, digest) = (folder.join("initramfs"), folder.join("digest"));
    if let Ok(digest) = fs::read_to_string(&digest) {
        return Ok((archive, digest));
    }
    let work = cache.join("initramfs").join(format!("unfinished-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    initramfs::write(&work.join("initramfs"), agent, &kernel.modules)?;
    let found = snapshot::digest_of(&[&kernel.image, &work.join("initramfs")])?;
    fs::write(work.join("digest"), &found)?;
    let _ = fs::remove_dir_all(&folder);
    match fs::rename(&work, &folder) {
        // Somebody else has made the same meanwhile.
        Err(_) if digest.exists() => drop(fs::remove_dir_all(&work)),
        placed => placed?,
    }
    Ok((archive, found))
}

/// Where roots are assembled, QEMU's and containers', in a mount namespace of its own each time.
pub(crate) fn stage_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("run").join("stage").join("root")
}

/// Where QEMU, kernels and the proof are kept on this machine: beside the templates.
fn cache() -> PathBuf {
    let templates = cache_dir();
    match templates.parent() {
        Some(parent) if templates.ends_with("templates") => parent.to_owned(),
        _ => templates,
    }
}

fn emulators_of(cache: &Path) -> PathBuf {
    cache.join("emulators")
}

fn kernels_of(cache: &Path) -> PathBuf {
    cache.join("kernels")
}

fn proof_of(cache: &Path) -> PathBuf {
    cache.join("kvm.json")
}

/// A folder that is removed when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tempfile_in(volume: &Path) -> io::Result<Scratch> {
    let path = volume.join("kvm-trial");
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path)?;
    Ok(Scratch(path))
}

/// The machines of a node that may have none.
pub(crate) fn require(vms: Option<&Arc<Vms>>) -> Result<Arc<Vms>, Error> {
    vms.cloned().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "this node has no virtual machines; start it with --runtime vm")
    })
}
