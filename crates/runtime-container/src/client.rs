//! The node's end of the launcher.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::pipe::PipeFlags;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::disk::Disk;
use crate::launcher::SOCKET_FD;
use crate::packet;
use crate::plan::{
    Capture, Captured, Launch, LaunchError, Launched, Preparation, Prepared, Request, Result, Step,
};

/// A request that takes longer than this is given up.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_REPLY_BYTES: u64 = 64 * 1024;

/// A running launcher. It ends when this is dropped; the sandboxes it started go on.
pub struct Launcher {
    socket: OwnedFd,
    child: Mutex<Child>,
}

impl Launcher {
    /// Starts `program launcher`.
    pub fn spawn(program: &Path) -> std::io::Result<Self> {
        let (ours, theirs) = packet::pair()?;
        let mut command = Command::new(program);
        command.arg("launcher").stdin(Stdio::null()).env_clear().process_group(0);
        let child = crate::sys::spawn_with_descriptor(&mut command, theirs.as_fd(), SOCKET_FD)?;
        Ok(Self { socket: ours, child: Mutex::new(child) })
    }

    /// Whether the program is still there; it ends only by a fault.
    pub fn is_alive(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        matches!(child.try_wait(), Ok(None))
    }

    /// Prepares a root on `disk`; nothing runs in it until [`Root::launch`].
    pub async fn prepare(
        &self,
        preparation: &Preparation,
        disk: Disk,
        network_namespace: BorrowedFd<'_>,
    ) -> Result<Root> {
        let (control, their_end) = packet::pair().step("make a socket")?;
        let (answer, reply) = Answer::pipe().step("make a pipe")?;
        let descriptors = [network_namespace, disk.as_fd(), their_end.as_fd(), reply.as_fd()];
        packet::send(&self.socket, &Request::Prepare(preparation.clone()), descriptors)?;
        // From here on they are the set-up process's alone.
        drop((disk, their_end, reply));
        let Prepared { pid, steps } = answer.hear().await?;
        tracing::trace!(?steps, "a root is prepared");
        Ok(Root { control, pid })
    }

    /// Takes the disk of a running sandbox: makes the empty file `target` share all blocks of its image `source`. `root`
    /// is a folder of its root file system.
    pub async fn capture(
        &self,
        capture: &Capture,
        root: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
    ) -> Result<Captured> {
        let (answer, reply) = Answer::pipe().step("make a pipe")?;
        packet::send(
            &self.socket,
            &Request::Capture(capture.clone()),
            [root, source, target, reply.as_fd()],
        )?;
        drop(reply);
        answer.hear().await
    }
}

/// A prepared root. Dropping it lets go of everything it is made of.
#[derive(Debug)]
pub struct Root {
    control: OwnedFd,
    pid: i32,
}

impl Root {
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
        let (answer, reply) = Answer::pipe().step("make a pipe")?;
        let descriptors = [run_dir.as_fd(), agent.as_fd(), boot.as_fd(), reply.as_fd()];
        packet::send(&self.control, &Launch, descriptors)?;
        drop(reply);
        answer.hear().await
    }
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// An answer on its way.
struct Answer(pipe::Receiver);

impl Answer {
    /// The answer, and the end that it is written to.
    fn pipe() -> std::io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Theirs must block: the set-up process writes its answer in one go.
        rustix::fs::fcntl_setfl(&theirs, rustix::fs::OFlags::empty())?;
        Ok((Self(pipe::Receiver::from_owned_fd_unchecked(ours)?), theirs))
    }

    async fn hear<T: DeserializeOwned>(self) -> Result<T> {
        let step = "hear from the launcher";
        let mut answer = Vec::new();
        tokio::time::timeout(DEADLINE, self.0.take(MAX_REPLY_BYTES).read_to_end(&mut answer))
            .await
            .map_err(|_| LaunchError::new(step, "it took too long"))?
            .step(step)?;
        if answer.is_empty() {
            return Err(LaunchError::new(
                step,
                "the process that served the request ended without an answer",
            ));
        }
        serde_json::from_slice::<Result<T>>(&answer).step(step)?
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Closing the socket is what ends it; collect it so that it does not stay behind as a zombie.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).wait();
    }
}

fn memory_file(content: &[u8]) -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("warren-boot", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}
