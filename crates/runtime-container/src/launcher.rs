//! The launcher: a single-threaded program that forks a process for each request it is sent: a set-up process for a root, a
//! pair of them for a capture.
//!
//! It is started by the node as `warren launcher` with one end of a packet socket as descriptor 3, and ends when the
//! node's end closes. It holds nothing: sandboxes go on without it.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use crate::plan::{MAX_REQUEST_BYTES, Request, Result, Step};
use crate::seccomp::{self, Instruction};
use crate::sys::{self, EndedChildren, Fork};
use crate::{capture, packet, setup};

/// Descriptor of the launcher's end of the socket.
pub const SOCKET_FD: i32 = 3;

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
        let Some((request, descriptors)) = packet::receive(&socket, &mut buffer)? else { return Ok(()) };
        match sys::fork(0).step("fork a process for the request")? {
            Fork::Parent(_) => {}
            Fork::Child => serve_one(socket, request, descriptors, &filter),
        }
    }
}

fn serve_one(socket: OwnedFd, request: &[u8], descriptors: [OwnedFd; 4], filter: &[Instruction]) -> ! {
    drop(socket);
    // An interrupt at the terminal is for the server, which decides what becomes of its sandboxes.
    let _ = rustix::process::setsid();
    let _ = sys::ended_children(EndedChildren::Keep);
    match packet::decode::<Request>(request) {
        Ok(Request::Prepare(preparation)) => {
            let [network_namespace, disk, control, reply] = descriptors;
            let descriptors = setup::Descriptors { network_namespace, disk, control };
            setup::run(&preparation, descriptors, reply, filter);
        }
        Ok(Request::Capture(capture)) => {
            let [root, source, target, reply] = descriptors;
            capture::run(&capture, &capture::Descriptors { root, source, target, reply });
        }
        Err(error) => {
            let [.., reply] = descriptors;
            setup::answer::<()>(reply, &Err(error));
        }
    }
    sys::exit_now(0)
}
