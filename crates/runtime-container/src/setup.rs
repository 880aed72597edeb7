//! The set-up process: everything between the launcher's fork and the sandbox's PID 1.
//!
//! It is host root in a mount namespace of its own. It enters the sandbox's cgroup first, so that what it makes is
//! charged there and PID 1 is born in it; and it ends as soon as the agent program runs. When a step fails, its mounts
//! and the loop device go with it; it ends PID 1 and removes the cgroup.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use rustix::process::Pid;

use crate::cgroup::{Cgroup, Hierarchies};
use crate::init;
use crate::plan::{Launch, LaunchError, Launched, Result, Step};
use crate::rootfs::{self, Disk};
use crate::seccomp::Instruction;
use crate::sys::{self, Fork};

/// Ids a sandbox has, mapped to as many of the host's.
pub(crate) const IDS: u32 = 65536;

/// Descriptors that come with a [`Launch`].
pub(crate) struct Descriptors {
    pub(crate) network_namespace: OwnedFd,
    pub(crate) boot: OwnedFd,
    pub(crate) reply: OwnedFd,
}

/// Starts the sandbox and answers on the reply pipe. The life of the set-up process.
pub(crate) fn run(launch: &Launch, descriptors: Descriptors, filter: &[Instruction]) {
    let Descriptors { network_namespace, boot, reply } = descriptors;
    // The node reads until the pipe closes, which is when this closure has run.
    let answer = move |answer: &Result<Launched>| {
        let json = serde_json::to_vec(answer).expect("an answer is plain data");
        // A node that has gone has nobody to tell; it will find the sandbox, or nothing, when it is back.
        let _ = File::from(reply).write_all(&json);
    };
    let hierarchies = match Hierarchies::detect().step("find the cgroup hierarchies") {
        Ok(hierarchies) => hierarchies,
        Err(error) => return answer(&Err(error)),
    };
    let cgroup = hierarchies.group(&launch.cgroup.parent, &launch.cgroup.name);
    match start(launch, &cgroup, network_namespace, &boot, filter) {
        Ok((launched, disk)) => {
            answer(&Ok(launched));
            // A disk that cannot be trusted is not to be used: the node sees the sandbox end.
            if disk.keep_order().is_err() {
                undo(&cgroup);
            }
        }
        Err(error) => {
            undo(&cgroup);
            answer(&Err(error));
        }
    }
}

/// Times the steps of a launch.
struct Clock {
    last: Instant,
    steps: Vec<(String, u32)>,
}

impl Clock {
    fn lap(&mut self, step: &str) {
        let micros = u32::try_from(self.last.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.steps.push((step.to_owned(), micros));
        self.last = Instant::now();
    }
}

fn start(
    launch: &Launch,
    cgroup: &Cgroup,
    network_namespace: OwnedFd,
    boot: &OwnedFd,
    filter: &[Instruction],
) -> Result<(Launched, Disk)> {
    let mut clock = Clock { last: Instant::now(), steps: Vec::new() };
    cgroup.create(&launch.cgroup).step("make the sandbox's cgroup")?;
    cgroup.enter().step("enter the sandbox's cgroup")?;
    clock.lap("cgroup");

    sys::join_namespace(network_namespace.as_fd(), libc::CLONE_NEWNET).step("enter the network namespace")?;
    drop(network_namespace);
    let user_namespace = make_user_namespace(launch.id_base)?;
    clock.lap("user namespace");

    let listener = listen(launch)?;
    let agent = File::open(&launch.agent).step("open the guest agent")?;
    let lxcfs = launch.lxcfs.as_deref().map(rootfs::open_lxcfs).unwrap_or_default();

    rootfs::own_mounts()?;
    clock.lap("mount namespace");
    let disk = rootfs::assemble(launch, user_namespace.as_fd())?;
    clock.lap("disk");
    cgroup.limit_io(&launch.cgroup, &disk.device).step("limit the sandbox's disk")?;
    cgroup.delegate(launch.id_base).step("hand the cgroup to the sandbox")?;
    sys::unshare(libc::CLONE_NEWCGROUP | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS).step("make namespaces")?;
    rootfs::populate(launch)?;
    rootfs::enter(&launch.stage_dir)?;
    rustix::system::sethostname(launch.hostname.as_bytes()).step("set the host name")?;
    clock.lap("root file system");

    let (failure, failure_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    let pid = match sys::fork(libc::CLONE_NEWPID).step("start PID 1")? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            drop(failure);
            let error = init::become_agent(&init::Inherited {
                user_namespace: user_namespace.as_fd(),
                listener: listener.as_fd(),
                boot: boot.as_fd(),
                agent: agent.as_fd(),
                failure: failure_end.as_fd(),
                lxcfs: &lxcfs,
                filter,
            });
            let _ = File::from(failure_end).write_all(&serde_json::to_vec(&error).unwrap_or_default());
            sys::exit_now(1);
        }
    };
    drop(failure_end);
    // The pipe closes when the agent program runs, and carries the reason when it does not.
    let mut reason = Vec::new();
    File::from(failure).take(64 * 1024).read_to_end(&mut reason).step("hear from PID 1")?;
    if !reason.is_empty() {
        let error = serde_json::from_slice(&reason).unwrap_or_else(|error| {
            LaunchError::new("start PID 1", format!("it ended without a reason: {error}"))
        });
        return Err(error);
    }
    clock.lap("agent program");
    Ok((Launched { pid, disk_device: disk.device.clone(), steps: clock.steps }, disk))
}

/// Ends what was started and removes the cgroup, as far as possible: the node sweeps what is left.
fn undo(cgroup: &Cgroup) {
    // We are in that group ourselves; leave it before it is killed.
    if let Ok(root) = Hierarchies::detect() {
        let _ = fs::write(root.unified.join("cgroup.procs"), "0");
        for root in root.legacy.values() {
            let _ = fs::write(root.join("cgroup.procs"), "0");
        }
    }
    let _ = cgroup.kill();
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
    let _ = cgroup.remove();
}

/// The socket on which the agent hears its node, in a folder that only the host can reach.
fn listen(launch: &Launch) -> Result<UnixListener> {
    let step = "make the agent's socket";
    // A path of any length fits only relative to the current folder: socket addresses hold 108 bytes.
    std::env::set_current_dir(&launch.run_dir).step(step)?;
    match fs::remove_file("agent.sock") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LaunchError::new(step, error)),
        _ => {}
    }
    let listener = UnixListener::bind("agent.sock").step(step)?;
    std::env::set_current_dir("/").step(step)?;
    Ok(listener)
}

/// What a user namespace may have at most: no further ones in it, and as many inotify instances as a user on a plain
/// machine, since all sandboxes' count against the host's root as well.
const NAMESPACE_LIMITS: [(&str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/sys/user/max_inotify_instances", "128"),
    ("/proc/sys/user/max_inotify_watches", "65536"),
];

/// Makes a user namespace whose ids 0 to 65535 are the host's from `base` on, with its limits set. It is held by the
/// descriptor alone.
fn make_user_namespace(base: u32) -> Result<OwnedFd> {
    let step = "make the user namespace";
    let (ready, ready_end) = rustix::pipe::pipe().step(step)?;
    let (mapped, mapped_end) = rustix::pipe::pipe().step(step)?;
    let pid = match sys::fork(libc::CLONE_NEWUSER).step(step)? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            drop((ready, mapped_end));
            let mut mapped = File::from(mapped);
            let mut byte = [0];
            let limited = mapped.read_exact(&mut byte).and_then(|()| {
                NAMESPACE_LIMITS.iter().try_for_each(|(limit, value)| fs::write(limit, value))
            });
            let _ = File::from(ready_end).write_all(&[u8::from(limited.is_ok())]);
            // Holds the namespace until our parent has opened it, or is gone.
            let _ = mapped.read(&mut byte);
            sys::exit_now(0);
        }
    };
    drop((ready_end, mapped));
    let namespace = (|| {
        fs::write(format!("/proc/{pid}/uid_map"), format!("0 {base} {IDS}"))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("0 {base} {IDS}"))?;
        rustix::io::write(&mapped_end, &[1])?;
        let mut byte = [0];
        File::from(ready).read_exact(&mut byte)?;
        if byte[0] != 1 {
            return Err(io::Error::other("the limits of the user namespace could not be set"));
        }
        File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
    })();
    drop(mapped_end);
    let _ = rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::empty());
    let namespace = namespace.step(step)?;
    // Above what PID 1 will place its own descriptors over.
    rustix::io::fcntl_dupfd_cloexec(&namespace, 16)
        .step(step)
        .inspect(|fd| debug_assert!(fd.as_raw_fd() >= 16))
}
