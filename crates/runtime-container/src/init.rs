//! PID 1 of a sandbox, up to the moment it becomes the guest agent.
//!
//! It starts as host root in the new PID namespace, which it needs to mount `/proc`, and then gives everything up: it
//! joins the user namespace, cuts the bounding set, takes on the seccomp filter and runs the agent program with an empty
//! environment and three descriptors besides `/dev/null`.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Resource, Rlimit};
use warren_guest_api::boot::{BOOT_FD, LISTENER_FD};

use warren_runtime::{LaunchError, Result, Step, sys};

use crate::rootfs;
use crate::seccomp::Instruction;

/// Reports a failure to the set-up process; closed by the exec.
const FAILURE_FD: i32 = 5;
const AGENT_FD: i32 = 6;

/// Capabilities that root inside may have, over its own user namespace and nothing else: what `sudo apt install`
/// and ordinary services need. By number, as in `linux/capability.h`.
const KEPT_CAPABILITIES: [(&str, u32); 14] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_FOWNER", 3),
    ("CAP_FSETID", 4),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_AUDIT_WRITE", 29),
    ("CAP_SETFCAP", 31),
];

/// What the set-up process leaves to PID 1.
pub(crate) struct Inherited<'a> {
    pub(crate) user_namespace: BorrowedFd<'a>,
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) boot: BorrowedFd<'a>,
    pub(crate) agent: BorrowedFd<'a>,
    pub(crate) failure: BorrowedFd<'a>,
    pub(crate) lxcfs: &'a [(&'static str, OwnedFd)],
    pub(crate) filter: &'a [Instruction],
}

/// Returns only on failure, with the reason.
pub(crate) fn become_agent(inherited: &Inherited<'_>) -> LaunchError {
    match prepare(inherited) {
        Ok(agent) => {
            LaunchError::new("run the guest agent", sys::exec(agent.as_fd(), &[c"warren-agent", c"init"]))
        }
        Err(error) => error,
    }
}

fn prepare(inherited: &Inherited<'_>) -> Result<OwnedFd> {
    rustix::process::setsid().step("start a session")?;
    rootfs::mount_proc(inherited.lxcfs)?;
    sys::new_session_keyring().step("leave the host's keyrings")?;
    limit_resources();

    sys::join_namespace(inherited.user_namespace, libc::CLONE_NEWUSER).step("enter the user namespace")?;
    sys::become_root().step("become root of the user namespace")?;
    drop_capabilities()?;
    let agent = arrange_descriptors(inherited)?;
    sys::apply_seccomp(inherited.filter).step("apply the seccomp filter")?;
    Ok(agent)
}

/// Puts the agent's descriptors where it expects them and closes the rest, except the two this program still needs.
fn arrange_descriptors(inherited: &Inherited<'_>) -> Result<OwnedFd> {
    let step = "arrange the agent's descriptors";
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").step(step)?;
    // Copies out of the way first, so that no target is the source of another.
    let aside = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 32).step(step);
    let sources = [
        (aside(null.as_fd())?, 0),
        (aside(null.as_fd())?, 1),
        (aside(null.as_fd())?, 2),
        (aside(inherited.listener)?, LISTENER_FD),
        (aside(inherited.boot)?, BOOT_FD),
        (aside(inherited.failure)?, FAILURE_FD),
        (aside(inherited.agent)?, AGENT_FD),
    ];
    for (source, target) in sources {
        sys::place_descriptor(source.as_fd(), target).step(step)?;
        // Closed by `close_from` below, together with all the others.
        std::mem::forget(source);
    }
    std::mem::forget(null);
    sys::close_from(AGENT_FD + 1).step(step)?;
    let failure = sys::inherited_descriptor(FAILURE_FD).step(step)?;
    let agent = sys::inherited_descriptor(AGENT_FD).step(step)?;
    for fd in [&failure, &agent] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).step(step)?;
    }
    std::mem::forget(failure);
    Ok(agent)
}

fn limit_resources() {
    // Raising a hard limit takes a capability that the daemon may lack; the inherited limit then stands.
    let files = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    // No dumps, and unlike with 0 no handler of the host's either, where it has one; see the seccomp filter.
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) });
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

fn drop_capabilities() -> Result<()> {
    for capability in 0.. {
        if KEPT_CAPABILITIES.iter().any(|(_, kept)| *kept == capability) {
            continue;
        }
        match sys::drop_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(LaunchError::new("drop capabilities", error)),
        }
    }
    Ok(())
}
