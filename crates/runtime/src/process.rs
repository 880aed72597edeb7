//! Hearing of the end of a process that is not our child.
#![expect(unsafe_code, reason = "tokio registers descriptors unsafely; the block says why it is sound")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process to wait for.
pub struct Watched {
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Fails when there is no such process any more. Must be called on a tokio runtime.
    pub fn new(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and open for as long as it is registered.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self { pidfd })
    }

    /// Whether the process has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) {
        // An error would mean that the runtime is shutting down.
        let _ = self.pidfd.readable().await;
    }
}
