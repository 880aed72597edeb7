//! The node's part: what it asks of the launcher.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use warren_runtime::client::{ask, memory_file};
use warren_runtime::{Launcher, Result, Step, packet};

use crate::disk::Disk;
use crate::plan::{Capture, Captured, LAUNCH, Launched, NAME, Preparation, Prepared, Request};

/// A prepared root. Dropping it lets go of everything it is made of.
#[derive(Debug)]
pub struct Root {
    control: OwnedFd,
    pid: i32,
}

impl Root {
    /// Prepares a root on `disk`; nothing runs in it until [`Self::launch`].
    pub async fn prepare(
        launcher: &Launcher,
        preparation: &Preparation,
        disk: Disk,
        network_namespace: BorrowedFd<'_>,
    ) -> Result<Self> {
        let (control, their_end) = packet::pair().step("make a socket")?;
        let request = Request::Prepare(preparation.clone());
        let reply = launcher.ask(NAME, &request, &[network_namespace, disk.as_fd(), their_end.as_fd()])?;
        // From here on they are the set-up process's alone.
        drop((disk, their_end));
        let Prepared { pid, steps } = reply.hear().await?;
        tracing::trace!(?steps, "a root is prepared");
        Ok(Self { control, pid })
    }

    /// The process that starts the sandbox: it must be in the sandbox's cgroup before [`Self::launch`].
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether that process still waits; it ends only when something kills it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.control, PollFlags::empty())];
        let now = rustix::time::Timespec::default();
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|hung_up| hung_up == 0)
    }

    /// Starts a sandbox in it; returns when its agent program runs. The agent's socket `agent.sock` is made in `run_dir`,
    /// `agent` is its program, and `boot` is what it reads at its start.
    pub async fn launch(self, run_dir: &Path, agent: &Path, boot: &[u8]) -> Result<Launched> {
        let step = "open the guest agent";
        let run_dir = open(run_dir, OFlags::RDONLY | OFlags::DIRECTORY).step(step)?;
        let agent = open(agent, OFlags::RDONLY).step(step)?;
        let boot = memory_file(boot).step("write the agent's settings")?;
        ask(&self.control, LAUNCH, &[run_dir.as_fd(), agent.as_fd(), boot.as_fd()])?.hear().await
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

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}
