//! What a machine needs around it: disks, a network slot, a launcher, a cgroup.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use warren_guest_api::network::{
    GATEWAY, GATEWAY_HARDWARE, INSIDE, INSIDE_HARDWARE, LINK, RESOLVER, SETTINGS,
};
use warren_netlink::Netlink;
use warren_runtime::Launcher;
use warren_runtime::cgroup::{Hierarchies, Limits};
use warren_runtime::process::Watched;
use warren_runtime_vm::emulator::{self, Emulator};
use warren_runtime_vm::kernel::{self, Kernel};
use warren_runtime_vm::machine::{Complaints, Machine, make_memory, read_state, state_file};
use warren_runtime_vm::{Accelerator, Hardware, Launch, Start, initramfs, proof};

use crate::agent::Agent;

const BOOT_DEADLINE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 4 << 30;

pub(crate) struct Lab {
    folder: tempfile::TempDir,
    kernel: Kernel,
    emulator: Emulator,
    template: PathBuf,
    launcher: Launcher,
    hierarchies: Hierarchies,
    parent: String,
    pub(crate) mtu: u32,
    pub(crate) memory_mb: u32,
}

pub(crate) struct Sandbox {
    pub(crate) folder: PathBuf,
    pub(crate) machine: Machine,
    pub(crate) agent: Agent,
    pub(crate) pid: i32,
    pub(crate) complaints: Complaints,
    /// From the launch to an answering agent, in milliseconds.
    pub(crate) timing: Timing,
    ended: Watched,
    name: String,
    _namespace: OwnedFd,
}

/// Milliseconds since the launch.
#[derive(Debug, Default, Clone)]
#[expect(dead_code, reason = "printed")]
pub(crate) struct Timing {
    pub(crate) launch: u128,
    pub(crate) control: u128,
    pub(crate) up: u128,
    pub(crate) agent: u128,
}

pub(crate) struct Snapshot {
    pub(crate) folder: PathBuf,
    pub(crate) pause: Duration,
    pub(crate) state_bytes: usize,
}

impl Sandbox {
    /// Time its QEMU has spent on a CPU: a figure that a busy host does not spoil.
    pub(crate) fn busy(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap().flatten();
        let spent = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }
}

impl Lab {
    /// `None`, and a sentence why, on a machine that lacks something.
    pub(crate) async fn open() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return skip("it starts machines, which needs root");
        }
        let cache = Path::new("/var/cache/warren");
        let emulators = cache.join("emulators");
        let made = tokio::task::spawn_blocking(move || emulator::ensure(&emulators)).await.unwrap();
        let emulator = match made {
            Ok(emulator) => emulator,
            Err(error) => return skip(&error.to_string()),
        };
        let kernel = match kernel::ensure(&cache.join("kernels")).await {
            Ok(kernel) => kernel,
            Err(error) => return skip(&format!("no kernel: {error}")),
        };
        let Some(template) = find_template(&cache.join("templates")) else {
            return skip("no base template is in the cache; `warren serve` makes one");
        };
        let program = Path::new(env!("CARGO_BIN_EXE_warren-vm-launcher"));
        let Some(agent) = find_agent(program) else {
            return skip("the guest agent is not built; `cargo build -p warren-node` does it");
        };
        let folder = match std::env::var_os("WARREN_VM_LAB") {
            Some(place) => tempfile::tempdir_in(place),
            None => tempfile::tempdir(),
        }
        .unwrap();
        initramfs::write(&folder.path().join("initramfs"), &agent, &kernel.modules).unwrap();
        for name in ["stage", "snapshots"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        blank(folder.path());
        let hierarchies = Hierarchies::detect().unwrap();
        let parent = format!("warren-vm-test-{}", std::process::id());
        hierarchies.ensure_parent(&parent).unwrap();
        let launcher = Launcher::spawn(program).unwrap();
        Some(Self {
            folder,
            kernel,
            emulator,
            template,
            launcher,
            hierarchies,
            parent,
            mtu: 1400,
            memory_mb: 512,
        })
    }

    pub(crate) async fn boot(&self, name: &str) -> Sandbox {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        clone(&self.folder.path().join("blank.img"), &folder.join("disk.img"));
        make_memory(&folder.join("memory"), u64::from(self.memory_mb) << 20).unwrap();
        self.start(name, folder, self.fresh_start()).await
    }

    pub(crate) async fn restore(&self, snapshot: &Snapshot, name: &str) -> Sandbox {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        for file in ["disk.img", "memory", "state"] {
            clone(&snapshot.folder.join(file), &folder.join(file));
        }
        self.start(name, folder, Start::Restore).await
    }

    async fn start(&self, name: &str, folder: PathBuf, start: Start) -> Sandbox {
        let namespace = slot(self.mtu);
        let state = (start == Start::Restore)
            .then(|| state_file(&read_state(&folder.join("state")).unwrap()).unwrap());
        let complaints = Complaints::new().unwrap();
        let launch = self.plan(name, &folder, start, Accelerator::Emulation);
        let clock = Instant::now();
        let launched = warren_runtime_vm::launch(
            &self.launcher,
            &launch,
            namespace.as_fd(),
            complaints.descriptor(),
            state.as_ref().map(AsFd::as_fd),
        )
        .await
        .unwrap();
        let mut timing = Timing { launch: clock.elapsed().as_millis(), ..Timing::default() };
        println!("{name}: {:?}", launched.steps);
        let ended =
            Watched::new(launched.pid).unwrap_or_else(|error| panic!("{error}: {}", complaints.read()));
        let connected = Machine::connect(&folder).await;
        let mut machine = connected.unwrap_or_else(|error| panic!("{error}: {}", complaints.read()));
        timing.control = clock.elapsed().as_millis();
        machine.up(BOOT_DEADLINE).await.unwrap_or_else(|error| panic!("{error}: {}", complaints.read()));
        timing.up = clock.elapsed().as_millis();
        let agent = Agent::connect(&folder).await;
        timing.agent = clock.elapsed().as_millis();
        let (pid, name) = (launched.pid, name.to_owned());
        Sandbox { folder, machine, agent, pid, complaints, timing, ended, name, _namespace: namespace }
    }

    fn plan(&self, name: &str, folder: &Path, start: Start, accelerator: Accelerator) -> Launch {
        let limits = Limits {
            cpu_count: 1,
            cpus: Vec::new(),
            memory_bytes: (u64::from(self.memory_mb) + 256) << 20,
            pids: 256,
            disk_device: None,
            io_bytes_per_second: 2 << 30,
            io_operations_per_second: 100_000,
        };
        self.hierarchies.group(&self.parent, name).create(&limits).unwrap();
        Launch {
            user: 0x1fff_0000 + std::process::id() % 0xffff,
            cgroup_parent: self.parent.clone(),
            cgroup_name: name.to_owned(),
            io_bytes_per_second: 2 << 30,
            io_operations_per_second: 100_000,
            emulator_tree: self.emulator.tree.clone(),
            hardware: Hardware { accelerator, cpu_count: 1, memory_mb: self.memory_mb },
            template_image: self.template.clone(),
            disk_image: folder.join("disk.img"),
            memory_file: folder.join("memory"),
            run_dir: folder.to_owned(),
            stage_dir: self.folder.path().join("stage"),
            mtu: self.mtu,
            start,
        }
    }

    /// Boots a machine, goes on with its snapshot and ends it: how long the boot took, or what did not work.
    pub(crate) async fn try_life(
        &self,
        name: &str,
        accelerator: Accelerator,
        deadline: Duration,
    ) -> Result<Duration, String> {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        clone(&self.folder.path().join("blank.img"), &folder.join("disk.img"));
        make_memory(&folder.join("memory"), u64::from(self.memory_mb) << 20).unwrap();
        let launch = self.plan(name, &folder, self.fresh_start(), accelerator);
        let namespace = slot(self.mtu);
        let outcome = proof::live(&self.launcher, &launch, namespace.as_fd(), deadline).await;
        let group = self.hierarchies.group(&self.parent, name);
        while group.is_populated().unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        group.remove().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        outcome
    }

    fn fresh_start(&self) -> Start {
        Start::Boot { kernel: self.kernel.image.clone(), initramfs: self.folder.path().join("initramfs") }
    }

    /// Clones a running sandbox; it runs on.
    pub(crate) async fn snapshot(&self, sandbox: &mut Sandbox, name: &str) -> Snapshot {
        let folder = self.folder.path().join("snapshots").join(name);
        fs::create_dir(&folder).unwrap();
        let (from, to) = (sandbox.folder.clone(), folder.clone());
        // What is dirty is written before the pause, not in it; and once more what that took the time for.
        for file in ["memory", "disk.img", "memory"] {
            File::open(from.join(file)).unwrap().sync_data().unwrap();
        }
        let copy = async move || {
            for file in ["memory", "disk.img"] {
                clone(&from.join(file), &to.join(file));
            }
            Ok(())
        };
        let (state, (), pause) = sandbox.machine.snapshot(copy).await.unwrap();
        fs::write(folder.join("state"), &state).unwrap();
        Snapshot { folder, pause, state_bytes: state.len() }
    }

    /// Ends a sandbox and checks that nothing of it is left.
    pub(crate) async fn done(&self, mut sandbox: Sandbox) {
        assert_eq!(sandbox.complaints.read(), "");
        sandbox.machine.quit().await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), sandbox.ended.ended()).await.unwrap();
        let group = self.hierarchies.group(&self.parent, &sandbox.name);
        let deadline = Instant::now() + Duration::from_secs(10);
        while group.remove().is_err() {
            assert!(Instant::now() < deadline, "the cgroup is still in use");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::remove_dir_all(&sandbox.folder).unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.hierarchies.list(&self.parent).unwrap_or_default() {
            let group = self.hierarchies.group(&self.parent, &name);
            let _ = group.kill();
            while group.is_populated().is_ok_and(|populated| populated) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = group.remove();
        }
        let _ = self.hierarchies.remove_parent(&self.parent);
    }
}

fn skip(reason: &str) -> Option<Lab> {
    eprintln!("SKIP: {reason}");
    None
}

fn find_template(cache: &Path) -> Option<PathBuf> {
    let images = fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
    images.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "ext4"))
}

fn find_agent(program: &Path) -> Option<PathBuf> {
    let target = program.parent()?.parent()?;
    let path = target.join("guest/x86_64-unknown-linux-gnu/guest/warren-agent");
    path.is_file().then_some(path)
}

fn blank(folder: &Path) {
    let (image, layers) = (folder.join("blank.img"), folder.join("layers"));
    for name in ["upper", "work"] {
        fs::create_dir_all(layers.join(name)).unwrap();
    }
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=16", "-d"])
        .args([&layers, &image])
        .status()
        .unwrap();
    assert!(made.success());
}

/// A reflink where the file system has them, else a copy that keeps holes.
pub(crate) fn clone(from: &Path, to: &Path) {
    let (source, target) = (File::open(from).unwrap(), File::create(to).unwrap());
    let cloned = rustix::fs::ioctl_ficlone(&target, &source);
    if cloned.is_err() {
        let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
        assert!(copied.unwrap().success());
    }
}

/// A network namespace as the node prepares it, with a resolver that knows one name.
fn slot(mtu: u32) -> OwnedFd {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name = format!("v{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    std::thread::spawn(move || {
        warren_runtime::network_namespace::make().unwrap();
        let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap());
        for (name, value) in SETTINGS {
            let _ = fs::write(format!("/proc/sys/net/{name}"), value);
        }
        let netlink = Netlink::open().unwrap();
        netlink.set_up(1).unwrap();
        netlink.add_address(1, RESOLVER).unwrap();
        let host_end = (name.as_str(), GATEWAY_HARDWARE, std::process::id());
        netlink.add_pair(mtu, (LINK, 2, INSIDE_HARDWARE), host_end).unwrap();
        netlink.add_address(2, INSIDE).unwrap();
        netlink.set_up(2).unwrap();
        netlink.add_neighbour(2, GATEWAY, GATEWAY_HARDWARE).unwrap();
        netlink.add_route(2, GATEWAY).unwrap();
        netlink.add_default_route(2, GATEWAY).unwrap();
        let socket = UdpSocket::bind((RESOLVER, 53)).unwrap();
        std::thread::spawn(move || resolve(&socket));
        namespace
    })
    .join()
    .unwrap()
}

/// Answers every question for an address with 192.0.2.7.
fn resolve(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let end = question[12..length].iter().position(|&byte| byte == 0).unwrap_or(0) + 17;
        let is_address = question[end - 3] == 1;
        let mut answer = question[..end].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..12].copy_from_slice(&[0, u8::from(is_address), 0, 0, 0, 0]);
        if is_address {
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
        }
        let _ = socket.send_to(&answer, from);
    }
}
