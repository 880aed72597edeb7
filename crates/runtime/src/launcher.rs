//! The launcher: a single-threaded program that forks a set-up process for each launch it is sent.
//!
//! It is started by the node as `warren launcher` with one end of a packet socket as descriptor 3, and ends when the
//! node's end closes. It holds nothing: sandboxes go on without it.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::Serialize;

use crate::plan::{LaunchError, MAX_REQUEST_BYTES, Result, Step};
use crate::sys::{self, EndedChildren, Fork};

/// Descriptor of the launcher's end of the socket.
pub const SOCKET_FD: i32 = 3;

/// Most descriptors that come with a launch, the one for the answer included.
pub(crate) const MAX_DESCRIPTORS: usize = 8;

/// A runtime's part, run in the set-up process.
pub trait Runtime {
    /// What its launches are sent under.
    fn name(&self) -> &'static str;

    /// Starts the sandbox of the JSON in `launch` and answers through `answer`. The life of the set-up process.
    fn set_up(&self, launch: &[u8], descriptors: Vec<OwnedFd>, answer: Answer);
}

/// Where the node waits to hear. It reads until this is gone.
pub struct Answer(OwnedFd);

impl Answer {
    /// A node that has gone has nobody to tell; it will find the sandbox, or nothing, when it is back.
    pub fn send<T: Serialize>(self, answer: &Result<T>) {
        let json = serde_json::to_vec(answer).expect("an answer is plain data");
        let _ = File::from(self.0).write_all(&json);
    }
}

/// The whole program. Must be called before this process has made a thread.
#[must_use]
pub fn main(runtimes: &[&dyn Runtime]) -> ExitCode {
    match serve(runtimes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::stderr().write_all(format!("launcher: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn serve(runtimes: &[&dyn Runtime]) -> Result<()> {
    let socket = sys::inherited_descriptor(SOCKET_FD).step("take over the socket at descriptor 3")?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).step("keep the socket to ourselves")?;
    // The first process of each sandbox becomes ours when its set-up process ends, so that it does not linger as a zombie.
    sys::become_subreaper().step("become the parent of orphans")?;
    sys::ended_children(EndedChildren::Forget).step("let ended children go")?;
    let mut buffer = vec![0; MAX_REQUEST_BYTES];
    loop {
        let Some((request, descriptors)) = receive(&socket, &mut buffer)? else { return Ok(()) };
        match sys::fork(0).step("fork a set-up process")? {
            Fork::Parent(_) => {}
            Fork::Child => set_up(socket, runtimes, request, descriptors),
        }
    }
}

fn set_up(socket: OwnedFd, runtimes: &[&dyn Runtime], request: &[u8], mut descriptors: Vec<OwnedFd>) -> ! {
    drop(socket);
    // An interrupt at the terminal is for the server, which decides what becomes of its sandboxes.
    let _ = rustix::process::setsid();
    let _ = sys::ended_children(EndedChildren::Keep);
    // The client sends it last.
    if let Some(answer) = descriptors.pop().map(Answer) {
        let (name, launch) = split(request);
        match runtimes.iter().find(|runtime| runtime.name().as_bytes() == name) {
            Some(runtime) => runtime.set_up(launch, descriptors, answer),
            None => answer.send::<()>(&Err(LaunchError::new(
                "find the runtime",
                format!("there is no {:?}", String::from_utf8_lossy(name)),
            ))),
        }
    }
    sys::exit_now(0)
}

/// The name of the runtime, and what it is sent.
fn split(request: &[u8]) -> (&[u8], &[u8]) {
    match request.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&request[..end], &request[end + 1..]),
        None => (request, &[]),
    }
}

/// The next request, or `None` when the node has gone.
fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Result<Option<(&'a [u8], Vec<OwnedFd>)>> {
    let step = "receive a request";
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .step(step)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let mut received: Vec<OwnedFd> = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            received.extend(descriptors);
        }
    }
    Ok(Some((&buffer[..message.bytes], received)))
}
