//! The set-up process: everything between the launcher's fork and the sandbox's PID 1.
//!
//! It is host root in a mount namespace of its own and does its work in three steps. First it prepares what has nothing to
//! do with a disk: namespaces, devices, virtual file systems. Then it waits for the disk, an empty one or a sandbox's own,
//! and makes the root of it. Then it waits for the sandbox that is to live there. By the time it hears of it the node has
//! moved it into the sandbox's cgroup, so that PID 1 is born in there; it starts the agent program and ends as soon as that
//! runs. It also ends when a step fails or the node lets go of it, and its mounts and the disk go with it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::process::{Pid, Signal};
use warren_runtime::launcher::{Answer, Runtime, decode};
use warren_runtime::sys::{self, Fork};
use warren_runtime::{Clock, LaunchError, Result, Step, packet};

use crate::plan::{FURNISH, Furnished, LAUNCH, Launched, NAME, Preparation, Prepared, Request};
use crate::seccomp::{self, Instruction};
use crate::{capture, disk, init, rootfs};

/// Ids a sandbox has, mapped to as many of the host's.
pub(crate) const IDS: u32 = 65536;

/// The container runtime's part of the launcher.
pub struct Container {
    filter: Vec<Instruction>,
}

impl Container {
    /// Made once, before the first request: the filter is the same for all.
    #[must_use]
    pub fn new() -> Self {
        Self { filter: seccomp::filter() }
    }
}

impl Default for Container {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime for Container {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serve(&self, request: &[u8], descriptors: Vec<OwnedFd>, answer: Answer) {
        match decode::<Request>(request) {
            Ok(Request::Prepare(preparation)) => match packet::exactly(descriptors) {
                Ok([network_namespace, control]) => {
                    run(&preparation, network_namespace, &control, answer, &self.filter);
                }
                Err(error) => answer.send::<()>(&Err(error)),
            },
            Ok(Request::Capture(capture)) => match packet::exactly(descriptors) {
                Ok([root, source, target]) => {
                    capture::run(&capture, &capture::Descriptors { root, source, target }, answer);
                }
                Err(error) => answer.send::<()>(&Err(error)),
            },
            Ok(Request::Figures(figures)) => {
                let renewed = packet::exactly(descriptors)
                    .and_then(|[mounts]: [OwnedFd; 1]| rootfs::renew_lxcfs(&figures.lxcfs, mounts.as_fd()));
                answer.send(&renewed);
            }
            Err(error) => answer.send::<()>(&Err(error)),
        }
    }
}

/// The life of the set-up process. The [`FURNISH`] and the [`LAUNCH`] come over `control`.
fn run(
    preparation: &Preparation,
    network_namespace: OwnedFd,
    control: &OwnedFd,
    answer: Answer,
    filter: &[Instruction],
) {
    let bare = match Bare::prepare(preparation, network_namespace) {
        Ok(bare) => bare,
        Err(error) => return answer.send::<Prepared>(&Err(error)),
    };
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    answer.send(&Ok(Prepared { pid, steps: bare.steps.clone() }));
    let Some([disk, reply]) = next(control, FURNISH) else { return };
    let answer = Answer::through(reply);
    let root = match bare.furnish(preparation.id_base, disk) {
        Ok(root) => root,
        Err(error) => return answer.send::<Furnished>(&Err(error)),
    };
    answer.send(&Ok(Furnished { steps: root.steps.clone() }));
    let Some([run_dir, agent, boot, reply]) = next(control, LAUNCH) else { return };
    let launched = root.start(&Inside { run_dir, agent, boot }, filter);
    Answer::through(reply).send(&launched);
    // A disk that cannot be trusted is not to be used: the node sees the sandbox end.
    if let Ok(Launched { pid, .. }) = launched
        && disk::keep_order(root.disk.as_fd()).is_err()
    {
        end(pid);
    }
}

/// What comes with the word that is waited for. A node that has gone, or has no use for the root, closes its end.
fn next<const N: usize>(control: &OwnedFd, word: &[u8]) -> Option<[OwnedFd; N]> {
    let mut buffer = [0; 64];
    let (came, descriptors) = packet::receive(control, &mut buffer).ok()??;
    if came == word { packet::exactly(descriptors).ok() } else { None }
}

/// What a sandbox brings into its root.
struct Inside {
    run_dir: OwnedFd,
    agent: OwnedFd,
    boot: OwnedFd,
}

/// Everything a sandbox will have but its disk and processes.
struct Bare {
    user_namespace: OwnedFd,
    lxcfs: Vec<(&'static str, OwnedFd)>,
    steps: Vec<(String, u32)>,
}

/// Everything a sandbox will have but processes.
struct Root {
    user_namespace: OwnedFd,
    disk: OwnedFd,
    lxcfs: Vec<(&'static str, OwnedFd)>,
    steps: Vec<(String, u32)>,
}

impl Bare {
    fn prepare(preparation: &Preparation, network_namespace: OwnedFd) -> Result<Self> {
        let mut clock = Clock::start();
        sys::join_namespace(network_namespace.as_fd(), libc::CLONE_NEWNET)
            .step("enter the network namespace")?;
        drop(network_namespace);
        let user_namespace = make_user_namespace(preparation.id_base)?;
        clock.lap("user namespace");

        let lxcfs = preparation.lxcfs.as_deref().map(rootfs::open_lxcfs).unwrap_or_default();
        rootfs::own_mounts()?;
        sys::unshare(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS).step("make namespaces")?;
        rustix::system::sethostname(preparation.hostname.as_bytes()).step("set the host name")?;
        clock.lap("other namespaces");
        rootfs::enter_stage(preparation, user_namespace.as_fd())?;
        clock.lap("template");
        rootfs::populate(preparation.id_base)?;
        clock.lap("virtual file systems");
        Ok(Self { user_namespace, lxcfs, steps: clock.steps })
    }

    fn furnish(self, id_base: u32, disk: OwnedFd) -> Result<Root> {
        let mut clock = Clock::start();
        rootfs::assemble(id_base, disk.as_fd(), self.user_namespace.as_fd())?;
        clock.lap("overlay");
        Ok(Root { user_namespace: self.user_namespace, disk, lxcfs: self.lxcfs, steps: clock.steps })
    }
}

impl Root {
    fn start(&self, inside: &Inside, filter: &[Instruction]) -> Result<Launched> {
        let mut clock = Clock::start();
        let listener = listen(&inside.run_dir)?;
        sys::unshare(libc::CLONE_NEWCGROUP).step("make a cgroup namespace")?;
        rootfs::mount_cgroups()?;
        clock.lap("cgroup namespace");

        let (failure, failure_end) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
        let pid = match sys::fork(libc::CLONE_NEWPID).step("start PID 1")? {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                drop(failure);
                let error = init::become_agent(&init::Inherited {
                    user_namespace: self.user_namespace.as_fd(),
                    listener: listener.as_fd(),
                    boot: inside.boot.as_fd(),
                    agent: inside.agent.as_fd(),
                    failure: failure_end.as_fd(),
                    lxcfs: &self.lxcfs,
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
            end(pid);
            let error = serde_json::from_slice(&reason).unwrap_or_else(|error| {
                LaunchError::new("start PID 1", format!("it ended without a reason: {error}"))
            });
            return Err(error);
        }
        clock.lap("agent program");
        Ok(Launched { pid, steps: clock.steps })
    }
}

/// Ends PID 1 and with it everything in the sandbox.
fn end(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// The socket on which the agent hears its node.
fn listen(folder: &OwnedFd) -> Result<UnixListener> {
    let step = "make the agent's socket";
    rustix::process::fchdir(folder).step(step)?;
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
