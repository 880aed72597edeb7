//! Starts sandboxes as containers.
//!
//! A sandbox shares the host's kernel and nothing else: its own user, mount, PID, network, IPC, UTS and cgroup
//! namespaces, cgroup limits, a seccomp filter and a root of its own. Its user namespace owns none of the other
//! namespaces: root inside has no right over the mounts, the network or the clock it lives with.
//!
//! The launcher (`warren_runtime::launcher`) forks a set-up process for each root to prepare:
//!
//! ```text
//!   node ──Preparation + descriptors──▶ launcher ──fork──▶ set-up process   (host root, new mount namespace)
//!                                                            │  network and user namespaces, /dev, /run, /sys
//!   node ◀─────────────── Prepared or LaunchError ───────────┤  waits
//!   node ──mounted disk─────────────────────────────────────▶│  overlay of template and disk, which becomes /
//!   node ◀────────────── Furnished or LaunchError ───────────┤  waits
//!   node makes the cgroup, moves the set-up process in
//!   node ──Launch + descriptors─────────────────────────────▶│  cgroup namespace
//!                                                            └─clone─▶ PID 1    (new PID namespace)
//!                                                                        /proc, user namespace, capabilities,
//!                                                                        seccomp, exec of the guest agent
//!   node ◀─────────────── Launched or LaunchError ───────────┘  the set-up process ends here
//! ```
//!
//! Everything a sandbox holds (mounts, loop device, network namespace) hangs on its processes, so the kernel takes it
//! back when they end, whatever became of us. Only its cgroup directories are left to remove: `warren_runtime::cgroup::Cgroup`.

pub mod plan;

mod capture;
mod client;
mod disk;
mod init;
mod rootfs;
mod seccomp;
mod setup;

pub use client::{Bare, Root, capture, renew_figures};
pub use disk::{Disk, MountedDisk};
pub use plan::{Capture, Captured, Launched, Preparation};
pub use rootfs::MAX_TERMINALS;
pub use setup::Container;
