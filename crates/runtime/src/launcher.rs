//! The launcher: a single-threaded program that forks a process for each request it is sent.
//!
//! It is started by the node as `warren launcher` with one end of a packet socket as descriptor 3, and ends when the
//! node's end closes. It holds nothing: sandboxes go on without it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::packet;
use crate::plan::{LaunchError, MAX_REQUEST_BYTES, Result, Step};
use crate::sys::{self, EndedChildren, Fork};

/// Descriptor of the launcher's end of the socket.
pub const SOCKET_FD: i32 = 3;

/// A runtime's part, run in the forked process.
pub trait Runtime {
    /// What its requests are sent under.
    fn name(&self) -> &'static str;

    /// Does what `request` asks for and answers through `answer`. The life of the forked process.
    fn serve(&self, request: &[u8], descriptors: Vec<OwnedFd>, answer: Answer);
}

/// Where the node waits to hear. It reads until this is gone.
pub struct Answer(OwnedFd);

impl Answer {
    /// Through the write end of a pipe.
    #[must_use]
    pub fn through(pipe: OwnedFd) -> Self {
        Self(pipe)
    }

    /// A node that has gone has nobody to tell; it will find the sandbox, or nothing, when it is back.
    pub fn send<T: Serialize>(self, answer: &Result<T>) {
        let json = serde_json::to_vec(answer).expect("an answer is plain data");
        let _ = File::from(self.0).write_all(&json);
    }

    /// For a second process that may have to answer. The node hears whoever speaks first.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
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
        let Some((request, descriptors)) = packet::receive(&socket, &mut buffer)? else { return Ok(()) };
        match sys::fork(0).step("fork a process for the request")? {
            Fork::Parent(_) => {}
            Fork::Child => serve_one(socket, runtimes, request, descriptors),
        }
    }
}

fn serve_one(socket: OwnedFd, runtimes: &[&dyn Runtime], request: &[u8], mut descriptors: Vec<OwnedFd>) -> ! {
    drop(socket);
    // An interrupt at the terminal is for the server, which decides what becomes of its sandboxes.
    let _ = rustix::process::setsid();
    let _ = sys::ended_children(EndedChildren::Keep);
    // The client sends it last.
    if let Some(answer) = descriptors.pop().map(Answer) {
        let (name, request) = split(request);
        match runtimes.iter().find(|runtime| runtime.name().as_bytes() == name) {
            Some(runtime) => runtime.serve(request, descriptors, answer),
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

pub fn decode<T: DeserializeOwned>(request: &[u8]) -> Result<T> {
    serde_json::from_slice(request).step("read a request")
}
