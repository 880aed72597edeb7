//! Starts sandboxes as containers.
//!
//! A sandbox shares the host's kernel and nothing else: its own user, mount, PID, network, IPC, UTS and cgroup
//! namespaces, cgroup limits, a seccomp filter and a root of its own. Its user namespace owns none of the other
//! namespaces: root inside has no right over the mounts, the network or the clock it lives with.
//!
//! The node's daemon never forks. A small single-threaded program, the [`launcher`], does:
//!
//! ```text
//!   node ──Preparation + descriptors──▶ launcher ──fork──▶ set-up process   (host root, new mount namespace)
//!                                                            │  network and user namespaces, root file system
//!   node ◀─────────────── Prepared or LaunchError ───────────┤  waits
//!   node makes the cgroup, moves the set-up process in
//!   node ──Launch + descriptors─────────────────────────────▶│  cgroup namespace
//!                                                            └─clone─▶ PID 1    (new PID namespace)
//!                                                                        /proc, user namespace, capabilities,
//!                                                                        seccomp, exec of the guest agent
//!   node ◀─────────────── Launched or LaunchError ───────────┘  the set-up process ends here
//! ```
//!
//! Everything a sandbox holds (mounts, loop device, network namespace) hangs on its processes, so the kernel takes it
//! back when they end, whatever became of us. Only its cgroup directories are left to remove: [`cgroup::Cgroup`].

pub mod cgroup;
pub mod client;
pub mod launcher;
pub mod plan;
pub mod process;

mod capture;
mod disk;
mod init;
mod packet;
mod rootfs;
mod seccomp;
mod setup;
mod sys;

pub use client::{Launcher, Root};
pub use disk::Disk;
pub use plan::{Capture, Captured, LaunchError, Launched, Preparation};

/// Network namespaces, for threads made for nothing else.
pub mod network_namespace {
    use std::os::fd::BorrowedFd;

    /// Moves this thread into a new network namespace. The thread must end afterwards, not serve others.
    pub fn make() -> std::io::Result<()> {
        crate::sys::unshare(libc::CLONE_NEWNET)
    }

    /// Moves this thread into the network namespace `namespace`. The thread must end afterwards.
    pub fn join(namespace: BorrowedFd<'_>) -> std::io::Result<()> {
        crate::sys::join_namespace(namespace, libc::CLONE_NEWNET)
    }
}
