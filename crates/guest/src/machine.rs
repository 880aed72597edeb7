//! How the agent program starts as the first process of a virtual machine.
//!
//! ```text
//!   modules ──▶ disks ──▶ root: overlay, /dev, /proc, /sys ──▶ network ──▶ fork ──▶ PID 1 collects
//!                                                                             └──▶ the agent, on its serial port
//! ```
//!
//! The root is what a container of the same template has; what a container hides of its host is simply not there. When
//! PID 1 or the agent fails the machine stops, and its runtime reads why on the console.

pub(crate) mod end;
mod modules;
mod network;
pub(crate) mod port;
pub(crate) mod renew;
mod root;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit};
use rustix::system::RebootCommand;
use warren_guest_api::machine::{MODULES_DIR, PORT};

use crate::agent::Places;
use crate::{init, sys};

/// Settings of the guest's kernel, below `/proc/sys`. Links in `/tmp` are followed for whoever asks: the agent reads and writes
/// files for the sandbox's user, and there is nobody else here to be protected from.
const SETTINGS: [(&str, &str); 1] = [("fs/protected_symlinks", "0")];

/// More than the agent's main thread ever has on its stack.
const STACK_BYTES: usize = 512 * 1024;

/// Longest wait for a device to appear once its driver is there.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);

/// Runs as the first process. Does not return: when it fails, the machine stops.
pub fn machine() -> ! {
    let error = match start() {
        Ok(port) => run(port),
        Err(error) => error,
    };
    // The console is the kernel's log, which its runtime keeps the end of.
    eprintln!("warren-agent: {error}");
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // Ending the first process makes the kernel panic, which stops the machine as well.
    std::process::exit(1)
}

/// Brings the machine up to where a container starts.
fn start() -> io::Result<OwnedFd> {
    sys::reset_signals();
    root::mount_devices()?;
    modules::load_all(Path::new(MODULES_DIR))?;
    let port = port::open(PORT, DEVICE_DEADLINE)?;
    root::assemble(DEVICE_DEADLINE)?;
    root::enter()?;
    network::set_up()?;
    for (name, value) in SETTINGS {
        // A kernel that lacks one has nothing to change.
        let _ = fs::write(format!("/proc/sys/{name}"), value);
    }
    limit_resources();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    warm_up();
    Ok(port)
}

/// Runs a shell once, so that it and what it loads are in memory: every sandbox made from this machine has them from there.
fn warm_up() {
    let shell = Command::new("/bin/bash")
        .args(["-c", "true"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // A template may have none.
    drop(shell);
}

fn run(port: OwnedFd) -> io::Error {
    match sys::fork() {
        Err(error) => error,
        Ok(None) => {
            // A terminal that a command opens must not become the agent's.
            let _ = rustix::process::setsid();
            let failed = match sys::null_stdio().and_then(|()| settle_memory()) {
                Ok(()) => init::serve_port(port, &Places::default()),
                Err(error) => Err(error),
            };
            std::process::exit(i32::from(failed.is_err()))
        }
        Ok(Some(agent)) => match init::collect_until(agent) {
            Ok(()) => io::Error::other("the agent has ended"),
            Err(error) => error,
        },
    }
}

/// Has all memory of this process in place before it is used, what it asks for later too.
///
/// Software emulation computes the flags of a `setcc` before it stores the byte, and loses them when that store is the first
/// to its page: QEMU 7.2 then goes on with other flags, so a branch is taken that should not be. After a fork every page of
/// the stack is such a page. What runs in the sandbox is its own affair; the agent must not be wrong about what it is.
fn settle_memory() -> io::Result<()> {
    touch_stack();
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
    doing("keep the agent's memory in place", rustix::mm::mlockall(all))
}

/// Makes the stack as large as it will ever be, so that there is memory to be kept in place.
#[inline(never)]
fn touch_stack() {
    let deep = [0_u8; STACK_BYTES];
    std::hint::black_box(&deep);
}

fn limit_resources() {
    let files = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Waits for a device node.
fn wait_for(path: &Path, deadline: Duration) -> io::Result<()> {
    let started = Instant::now();
    while !path.exists() {
        if started.elapsed() > deadline {
            let message = format!("{} did not appear within {} s", path.display(), deadline.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Says what was being done when something failed.
fn doing<T, E: Into<io::Error>>(what: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("could not {what}: {error}"))
    })
}
