//! The set-up process: everything between the launcher's fork and QEMU.
//!
//! QEMU is taken to be the guest's: what a guest may find out to break in it must be worth nothing. It runs as a user that
//! owns nothing, in its own mount, PID, IPC and UTS namespaces and the slot's network namespace, under QEMU's own seccomp
//! filter and the sandbox's cgroup. Its root is a read-only tree of itself. It is handed open descriptors for everything
//! else, but for its memory, which has to be a path.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use warren_runtime::cgroup::Hierarchies;
use warren_runtime::launcher::{Answer, Runtime, decode};
use warren_runtime::sys::{self, Fork};
use warren_runtime::{Clock, LaunchError, Result, Step};

use crate::hardware::{
    self, AGENT_FD, Accelerator, CONTROL_FD, DISK_FD, INITRAMFS, KERNEL, MEMORY, PROGRAM, STATE_FD, TAP_FD,
    TEMPLATE_FD,
};
use crate::plan::{AGENT_SOCKET, CONTROL_SOCKET, Launch, Launched, NAME, Start};
use crate::tap;

/// Reports a failure to the set-up process; closed by the exec.
const FAILURE_FD: i32 = 9;
const PROGRAM_FD: i32 = 10;
/// Descriptors QEMU may have open.
const MAX_FILES: u64 = 1024;

/// The VM runtime's part of the launcher.
pub struct Vm;

impl Runtime for Vm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serve(&self, request: &[u8], descriptors: Vec<OwnedFd>, answer: Answer) {
        let started = decode::<Launch>(request).and_then(|launch| {
            let given = Given::take(&launch, descriptors)?;
            start(&launch, &given)
        });
        answer.send(&started);
    }
}

/// Descriptors that came with the launch.
struct Given {
    network_namespace: OwnedFd,
    complaints: OwnedFd,
    device_state: Option<OwnedFd>,
}

impl Given {
    fn take(launch: &Launch, descriptors: Vec<OwnedFd>) -> Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let given = (descriptors.next(), descriptors.next(), descriptors.next(), descriptors.next());
        match (given, &launch.start) {
            ((Some(network_namespace), Some(complaints), None, None), Start::Boot { .. }) => {
                Ok(Self { network_namespace, complaints, device_state: None })
            }
            ((Some(network_namespace), Some(complaints), device_state @ Some(_), None), Start::Restore) => {
                Ok(Self { network_namespace, complaints, device_state })
            }
            _ => Err(LaunchError::new("receive a request", "other descriptors came with it than it needs")),
        }
    }
}

/// What QEMU is started with.
struct Inherited {
    tap: OwnedFd,
    agent: UnixListener,
    control: UnixListener,
    template: File,
    disk: File,
}

fn start(launch: &Launch, given: &Given) -> Result<Launched> {
    let mut clock = Clock::start();
    let hierarchies = Hierarchies::detect().step("find the cgroup hierarchies")?;
    let cgroup = hierarchies.group(&launch.cgroup_parent, &launch.cgroup_name);
    cgroup.enter().step("enter the sandbox's cgroup")?;
    clock.lap("cgroup");

    sys::join_namespace(given.network_namespace.as_fd(), libc::CLONE_NEWNET)
        .step("enter the network namespace")?;
    let tap = tap::attach(launch.mtu).step("connect the machine to its network")?;
    clock.lap("network");

    let open = |path: &Path, write: bool| OpenOptions::new().read(true).write(write).open(path);
    let inherited = Inherited {
        tap,
        agent: listen(&launch.run_dir, AGENT_SOCKET)?,
        control: listen(&launch.run_dir, CONTROL_SOCKET)?,
        template: open(&launch.template_image, false).step("open the template")?,
        disk: open(&launch.disk_image, true).step("open the disk image")?,
    };
    chown(&launch.memory_file, Some(launch.user), Some(launch.user)).step("hand over the memory file")?;
    clock.lap("files");

    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP)
        .step("make namespaces")?;
    enter_root(launch)?;
    let program = open(Path::new(PROGRAM), false).step("open QEMU")?;
    clock.lap("root");

    let (failure, failure_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    let pid = match sys::fork(libc::CLONE_NEWPID).step("start QEMU's process")? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            drop(failure);
            let error = become_qemu(launch, given, &inherited, program.as_fd(), failure_end.as_fd());
            let _ = File::from(failure_end).write_all(&serde_json::to_vec(&error).unwrap_or_default());
            sys::exit_now(1);
        }
    };
    drop(failure_end);
    // The pipe closes when the program runs, and carries the reason when it does not.
    let mut reason = Vec::new();
    File::from(failure).take(64 * 1024).read_to_end(&mut reason).step("hear from QEMU's process")?;
    if !reason.is_empty() {
        let error = serde_json::from_slice(&reason).unwrap_or_else(|error| {
            LaunchError::new("start QEMU", format!("it ended without a reason: {error}"))
        });
        return Err(error);
    }
    clock.lap("program");
    Ok(Launched { pid, steps: clock.steps })
}

/// A socket on which QEMU hears the node, in a folder that only the host can reach.
fn listen(folder: &Path, name: &str) -> Result<UnixListener> {
    let step = "make the machine's sockets";
    // A path of any length fits only relative to the current folder: socket addresses hold 108 bytes.
    std::env::set_current_dir(folder).step(step)?;
    match fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LaunchError::new(step, error)),
        _ => {}
    }
    let listener = UnixListener::bind(name).step(step)?;
    std::env::set_current_dir("/").step(step)?;
    Ok(listener)
}

/// Makes QEMU's tree the root, with the few files in it that have to be paths.
fn enter_root(launch: &Launch) -> Result<()> {
    let root = launch.stage_dir.as_path();
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step("cut mounts off from the host's")?;
    let fixed = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    bind(&launch.emulator_tree, root, fixed).step("mount QEMU's root")?;
    let inside = |path: &str| root.join(&path[1..]);
    let data = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    bind(&launch.memory_file, &inside(MEMORY), data).step("place the memory file")?;
    if let Start::Boot { kernel, initramfs } = &launch.start {
        bind(kernel, &inside(KERNEL), data | MountFlags::RDONLY).step("place the kernel")?;
        bind(initramfs, &inside(INITRAMFS), data | MountFlags::RDONLY).step("place the initramfs")?;
    }
    if launch.hardware.accelerator == Accelerator::Kvm {
        own_kvm(&inside("/dev"), launch.user).step("place /dev/kvm")?;
    }
    let step = "enter QEMU's root";
    std::env::set_current_dir(root).step(step)?;
    rustix::process::pivot_root(".", ".").step(step)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("leave the host's root")?;
    std::env::set_current_dir("/").step(step)
}

fn bind(source: &Path, target: &Path, flags: MountFlags) -> rustix::io::Result<()> {
    rustix::mount::mount_bind(source, target)?;
    rustix::mount::mount_remount(target, MountFlags::BIND | flags, c"")
}

/// A device node of its own: who may use the host's is the host's affair.
fn own_kvm(folder: &Path, user: u32) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode};
    rustix::mount::mount(
        "tmpfs",
        folder,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0755,size=4k",
    )?;
    let (path, mode) = (folder.join("kvm"), Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, rustix::fs::makedev(10, 232))?;
    chown(path, Some(user), Some(user))
}

/// Returns only on failure, with the reason.
fn become_qemu(
    launch: &Launch,
    given: &Given,
    inherited: &Inherited,
    program: BorrowedFd<'_>,
    failure: BorrowedFd<'_>,
) -> LaunchError {
    let prepare = || -> Result<(OwnedFd, Vec<CString>)> {
        rustix::process::setsid().step("start a session")?;
        let arguments = hardware::arguments(launch)
            .into_iter()
            .map(CString::new)
            .collect::<std::result::Result<_, _>>()
            .step("write the arguments")?;
        limit_resources().step("limit QEMU")?;
        let program = arrange_descriptors(given, inherited, program, failure)?;
        sys::become_user(launch.user).step("become an unprivileged user")?;
        Ok((program, arguments))
    };
    match prepare() {
        Ok((program, arguments)) => {
            let arguments: Vec<_> = arguments.iter().map(CString::as_c_str).collect();
            LaunchError::new("run QEMU", sys::exec(program.as_fd(), &arguments))
        }
        Err(error) => error,
    }
}

fn limit_resources() -> io::Result<()> {
    let files = Rlimit { current: Some(MAX_FILES), maximum: Some(MAX_FILES) };
    rustix::process::setrlimit(Resource::Nofile, files)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    Ok(())
}

/// Puts descriptors where the arguments say they are and closes the rest.
fn arrange_descriptors(
    given: &Given,
    inherited: &Inherited,
    program: BorrowedFd<'_>,
    failure: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let step = "arrange QEMU's descriptors";
    // The tree has no /dev/null; a pipe without a writer is as empty.
    let (nothing, _) = rustix::pipe::pipe().step(step)?;
    // Copies out of the way first, so that no target is the source of another.
    let aside = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 32).step(step);
    let sources = [
        (aside(nothing.as_fd())?, 0),
        (aside(given.complaints.as_fd())?, 1),
        (aside(given.complaints.as_fd())?, 2),
        (aside(inherited.tap.as_fd())?, TAP_FD),
        (aside(inherited.agent.as_fd())?, AGENT_FD),
        (aside(inherited.control.as_fd())?, CONTROL_FD),
        (aside(inherited.template.as_fd())?, TEMPLATE_FD),
        (aside(inherited.disk.as_fd())?, DISK_FD),
        // Nothing to restore reads as empty.
        (aside(given.device_state.as_ref().map_or(nothing.as_fd(), AsFd::as_fd))?, STATE_FD),
        (aside(failure)?, FAILURE_FD),
        (aside(program)?, PROGRAM_FD),
    ];
    for (source, target) in sources {
        sys::place_descriptor(source.as_fd(), target).step(step)?;
        // Closed by `close_from` below, together with all the others.
        std::mem::forget(source);
    }
    std::mem::forget(nothing);
    sys::close_from(PROGRAM_FD + 1).step(step)?;
    let failure = sys::inherited_descriptor(FAILURE_FD).step(step)?;
    let program = sys::inherited_descriptor(PROGRAM_FD).step(step)?;
    for fd in [&failure, &program] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).step(step)?;
    }
    std::mem::forget(failure);
    Ok(program)
}
