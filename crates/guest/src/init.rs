//! How the agent program starts: as PID 1 of a sandbox, or alone.
//!
//! PID 1 does nothing but collect processes that have lost their parent. The agent is its child, so that collecting
//! never races with the agent's own waiting. When the agent ends, PID 1 ends, and with it the sandbox.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use warren_guest_api::MAX_JSON_BYTES;
use warren_guest_api::boot::{BOOT_FD, Boot, LISTENER_FD};

use crate::agent::{Agent, Places};
use crate::{machine_id, server, sys};

/// Runs as PID 1. Returns, in the child, when the agent has failed.
pub fn init() -> io::Result<()> {
    sys::reset_signals();
    match sys::fork()? {
        None => serve(&Places::default()),
        Some(agent) => {
            sys::close_all_from_3();
            collect_until(agent)
        }
    }
}

pub(crate) fn collect_until(agent: i32) -> io::Result<()> {
    loop {
        match sys::wait_any() {
            Ok(pid) if pid == agent => return Err(io::Error::other("the agent has ended")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Runs the agent in this process.
pub fn serve(places: &Places) -> io::Result<()> {
    sys::reset_signals();
    sys::use_one_heap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let listener = UnixListener::from(sys::inherited(LISTENER_FD)?);
    let boot = read_boot(File::from(sys::inherited(BOOT_FD)?))?;
    if let Some(path) = &places.machine_id {
        // A sandbox without one works.
        let _ = machine_id::settle(path, &places.journal.with_file_name("machine-of"), &boot.sandbox_id);
    }
    block_on(async {
        let agent = Agent::new(Some(boot), places)?;
        server::serve(listener, agent).await
    })
}

/// Runs the agent of a virtual machine in this process.
pub(crate) fn serve_port(port: OwnedFd, places: &Places) -> io::Result<()> {
    sys::use_one_heap();
    block_on(async {
        let agent = Agent::new(None, places)?;
        server::serve_port(port, agent).await
    })
}

fn block_on(work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, work)
}

fn read_boot(file: File) -> io::Result<Boot> {
    let mut text = Vec::new();
    file.take(MAX_JSON_BYTES as u64).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}
