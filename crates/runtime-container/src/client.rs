//! The node's part: what it asks of the launcher.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use warren_runtime::client::{ask, memory_file};
use warren_runtime::{Launcher, Result, Step, packet};

use crate::disk::Disk;
use crate::plan::{
    Capture, Captured, FURNISH, Figures, Furnished, LAUNCH, Launched, NAME, Preparation, Prepared, Request,
};

/// The set-up process of a root, waiting. Dropping it lets go of everything it holds.
#[derive(Debug)]
struct Waiting {
    control: OwnedFd,
    pid: i32,
}

/// A prepared root without a disk.
#[derive(Debug)]
pub struct Bare(Waiting);

/// A prepared root on its disk.
#[derive(Debug)]
pub struct Root(Waiting);

// === impl Waiting ===

impl Waiting {
    fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.control, PollFlags::empty())];
        let now = rustix::time::Timespec::default();
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|hung_up| hung_up == 0)
    }
}

// === impl Bare ===

impl Bare {
    /// Prepares all of a root that has nothing to do with its disk.
    pub async fn prepare(
        launcher: &Launcher,
        preparation: &Preparation,
        network_namespace: BorrowedFd<'_>,
    ) -> Result<Self> {
        let (control, their_end) = packet::pair().step("make a socket")?;
        let request = Request::Prepare(preparation.clone());
        let reply = launcher.ask(NAME, &request, &[network_namespace, their_end.as_fd()])?;
        // From here on it is the set-up process's alone.
        drop(their_end);
        let Prepared { pid, steps } = reply.hear().await?;
        tracing::trace!(?steps, "a root is prepared");
        Ok(Self(Waiting { control, pid }))
    }

    /// Whether its process still waits; it ends only when something kills it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// Puts it on `disk`; nothing runs in it until [`Root::launch`].
    pub async fn furnish(self, disk: Disk) -> Result<Root> {
        let reply = ask(&self.0.control, FURNISH, &[disk.as_fd()])?;
        // From here on it is the set-up process's alone.
        drop(disk);
        let Furnished { steps } = reply.hear().await?;
        tracing::trace!(?steps, "a root has its disk");
        Ok(Root(self.0))
    }
}

// === impl Root ===

impl Root {
    /// The process that starts the sandbox: it must be in the sandbox's cgroup before [`Self::launch`].
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Whether that process still waits.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// Starts a sandbox in it; returns when its agent program runs. The agent's socket `agent.sock` is made in `run_dir`,
    /// `agent` is its program, and `boot` is what it reads at its start.
    pub async fn launch(self, run_dir: &Path, agent: &Path, boot: &[u8]) -> Result<Launched> {
        let step = "open the guest agent";
        let run_dir = open(run_dir, OFlags::RDONLY | OFlags::DIRECTORY).step(step)?;
        let agent = open(agent, OFlags::RDONLY).step(step)?;
        let boot = memory_file(boot).step("write the agent's settings")?;
        ask(&self.0.control, LAUNCH, &[run_dir.as_fd(), agent.as_fd(), boot.as_fd()])?.hear().await
    }
}

/// Takes the disk of a running sandbox: makes the empty file `target` share all blocks of its image `source`. `root` is
/// a folder of its root file system.
pub async fn capture(
    launcher: &Launcher,
    capture: &Capture,
    root: BorrowedFd<'_>,
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
) -> Result<Captured> {
    launcher.ask(NAME, &Request::Capture(capture.clone()), &[root, source, target])?.hear().await
}

/// Has a running sandbox, whose mount namespace that is, tell its figures through the lxcfs mounted at `lxcfs`.
pub async fn renew_figures(launcher: &Launcher, lxcfs: &Path, mount_namespace: BorrowedFd<'_>) -> Result<()> {
    let request = Request::Figures(Figures { lxcfs: lxcfs.to_owned() });
    launcher.ask(NAME, &request, &[mount_namespace])?.hear().await
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}
