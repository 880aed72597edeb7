//! The node's end of the launcher.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::launcher::SOCKET_FD;
use crate::plan::{
    Capture, Captured, Launch, LaunchError, Launched, MAX_REQUEST_BYTES, Request, Result, Step,
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
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Packets are at most as large as the buffers allow.
        for end in [&ours, &theirs] {
            rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * MAX_REQUEST_BYTES)?;
        }
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

    /// Starts a sandbox; returns when its agent program runs. `boot` is what the agent reads at its start.
    pub async fn launch(
        &self,
        launch: &Launch,
        network_namespace: BorrowedFd<'_>,
        boot: &[u8],
    ) -> Result<Launched> {
        let boot = memory_file(boot).step("write the agent's settings")?;
        self.ask(&Request::Launch(launch.clone()), &[network_namespace, boot.as_fd()]).await
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
        self.ask(&Request::Capture(capture.clone()), &[root, source, target]).await
    }

    async fn ask<T: DeserializeOwned>(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<T> {
        let step = "send a request to the launcher";
        let (reply, reply_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).step(step)?;
        let request = serde_json::to_vec(request).step(step)?;
        if request.len() > MAX_REQUEST_BYTES {
            return Err(LaunchError::new(step, "it is too large"));
        }
        // The launcher's end of the pipe must block: whoever answers writes in one go.
        rustix::fs::fcntl_setfl(&reply_end, rustix::fs::OFlags::empty()).step(step)?;
        let descriptors = [descriptors, &[reply_end.as_fd()]].concat();
        self.send(&request, &descriptors).step(step)?;
        drop(reply_end);

        let step = "hear from the launcher";
        let reply = pipe::Receiver::from_owned_fd_unchecked(reply).step(step)?;
        let mut answer = Vec::new();
        tokio::time::timeout(DEADLINE, reply.take(MAX_REPLY_BYTES).read_to_end(&mut answer))
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

    fn send(&self, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let pushed = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(pushed, "the buffer is made for four descriptors");
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL)
            .map(drop)
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
