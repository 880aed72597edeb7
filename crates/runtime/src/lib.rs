//! What both runtimes share: the launcher, cgroups, processes to watch.
//!
//! The node's daemon never forks. A small single-threaded program, the [`launcher`], does, and runs one runtime's part in
//! the child:
//!
//! ```text
//!   node ──request + descriptors──▶ launcher ──fork──▶ set-up process        (host root)
//!                                                        └──clone──▶ the sandbox's first process
//!   node ◀─────────────── answer or LaunchError ──────────┘  the set-up process ends here
//! ```
//!
//! Everything a sandbox holds (mounts, devices, network namespace) hangs on its processes, so the kernel takes it back when
//! they end, whatever became of us. Only its cgroup directories are left to remove: [`cgroup::Cgroup`].

pub mod cgroup;
pub mod client;
pub mod extents;
pub mod launcher;
pub mod packet;
pub mod plan;
pub mod process;
pub mod sys;

pub use client::Launcher;
pub use plan::{Clock, LaunchError, Result, Step};

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
