//! The node's end of the launcher.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::pipe::PipeFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::launcher::SOCKET_FD;
use crate::packet;
use crate::plan::{LaunchError, Result, Step};

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

    /// Sends a request to the runtime of that name and returns the answer to come. The descriptors arrive in this order.
    pub fn ask<Q: Serialize>(
        &self,
        runtime: &str,
        request: &Q,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply> {
        let mut bytes = format!("{runtime}\n").into_bytes();
        serde_json::to_writer(&mut bytes, request).step("write a request")?;
        ask(&self.socket, &bytes, descriptors)
    }
}

/// Sends a request with a pipe for its answer.
pub fn ask(socket: impl AsFd, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<Reply> {
    let step = "make a pipe";
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).step(step)?;
    // Theirs must block: the set-up process writes its answer in one go.
    rustix::fs::fcntl_setfl(&theirs, rustix::fs::OFlags::empty()).step(step)?;
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().copied().chain([theirs.as_fd()]).collect();
    packet::send(socket, request, &descriptors)?;
    Ok(Reply(pipe::Receiver::from_owned_fd_unchecked(ours).step(step)?))
}

/// An answer on its way.
pub struct Reply(pipe::Receiver);

impl Reply {
    pub async fn hear<T: DeserializeOwned>(self) -> Result<T> {
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

/// A file of memory to hand over, at its beginning.
pub fn memory_file(content: &[u8]) -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("warren", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}
