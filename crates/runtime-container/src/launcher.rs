//! The launcher: a single-threaded program that forks a process for each request it is sent: a set-up process for a launch,
//! a pair of them for a capture.
//!
//! It is started by the node as `warren launcher` with one end of a packet socket as descriptor 3, and ends when the
//! node's end closes. It holds nothing: sandboxes go on without it.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::plan::{LaunchError, MAX_REQUEST_BYTES, Request, Result, Step};
use crate::seccomp::{self, Instruction};
use crate::sys::{self, EndedChildren, Fork};
use crate::{capture, setup};

/// Descriptor of the launcher's end of the socket.
pub const SOCKET_FD: i32 = 3;
/// Most descriptors a request has; the last of them is the pipe for the answer.
const MAX_DESCRIPTORS: usize = 4;

/// The whole program. Must be called before this process has made a thread.
#[must_use]
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ =
                std::io::Write::write_all(&mut std::io::stderr(), format!("launcher: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let socket = sys::inherited_descriptor(SOCKET_FD).step("take over the socket at descriptor 3")?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).step("keep the socket to ourselves")?;
    let filter = seccomp::filter();
    // PID 1 of each sandbox becomes ours when its set-up process ends, so that it does not linger as a zombie.
    sys::become_subreaper().step("become the parent of orphans")?;
    sys::ended_children(EndedChildren::Forget).step("let ended children go")?;
    let mut buffer = vec![0; MAX_REQUEST_BYTES];
    loop {
        let Some((request, descriptors)) = receive(&socket, &mut buffer)? else { return Ok(()) };
        match sys::fork(0).step("fork a process for the request")? {
            Fork::Parent(_) => {}
            Fork::Child => serve_one(socket, request, descriptors, &filter),
        }
    }
}

fn serve_one(socket: OwnedFd, request: &[u8], descriptors: Vec<OwnedFd>, filter: &[Instruction]) -> ! {
    drop(socket);
    // An interrupt at the terminal is for the server, which decides what becomes of its sandboxes.
    let _ = rustix::process::setsid();
    let _ = sys::ended_children(EndedChildren::Keep);
    match serde_json::from_slice::<Request>(request) {
        Ok(Request::Launch(launch)) => match <[OwnedFd; 3]>::try_from(descriptors) {
            Ok([network_namespace, boot, reply]) => {
                setup::run(&launch, setup::Descriptors { network_namespace, boot, reply }, filter);
            }
            Err(got) => refuse(&got, "it does not have three descriptors"),
        },
        Ok(Request::Capture(capture)) => match <[OwnedFd; 4]>::try_from(descriptors) {
            Ok([root, source, target, reply]) => {
                capture::run(&capture, &capture::Descriptors { root, source, target, reply });
            }
            Err(got) => refuse(&got, "it does not have four descriptors"),
        },
        Err(error) => refuse(&descriptors, error),
    }
    sys::exit_now(0)
}

fn refuse(descriptors: &[OwnedFd], why: impl std::fmt::Display) {
    let error: Result<()> = Err(LaunchError::new("read the request", why));
    let json = serde_json::to_vec(&error).expect("an error is plain data");
    if let Some(reply) = descriptors.last() {
        let _ = rustix::io::write(reply, &json);
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
