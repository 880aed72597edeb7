//! Hearing of the end of a process that is not our child.
#![expect(unsafe_code, reason = "descriptors are asked unsafely; the block says why that is sound")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A process to wait for.
pub struct Watched {
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    /// By a signal.
    Killed(i32),
}

/// `struct pidfd_info` of Linux, as far as it was from its beginning on.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_GET_INFO`, for a structure of that size.
const GET_INFO: libc::Ioctl = {
    let (read_and_write, kind, number) = (3_u32, 0xff_u32, 11_u32);
    ((read_and_write << 30) | ((size_of::<PidfdInfo>() as u32) << 16) | (kind << 8) | number) as libc::Ioctl
};
/// That the code is wanted, and in an answer that it is there.
const WITH_EXIT: u64 = 1 << 3;

impl Watched {
    /// Fails when there is no such process any more. Must be called on a tokio runtime.
    pub fn new(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        let pidfd = sys::watch(pidfd, Interest::READABLE)?;
        Ok(Self { pidfd })
    }

    /// Whether the process has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
    }

    /// How the process has ended, once its parent has been told. `None` before that, and always on a Linux before 6.15.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        let mut info = PidfdInfo { mask: WITH_EXIT, ..PidfdInfo::default() };
        // SAFETY: the request carries the size of the structure, which is ours for the time of the call.
        let asked = unsafe { libc::ioctl(self.pidfd.get_ref().as_raw_fd(), GET_INFO, &raw mut info) };
        if asked != 0 || info.mask & WITH_EXIT == 0 {
            return None;
        }
        // As `wait` says it.
        Some(match info.exit_code & 0x7f {
            0 => Exit::Code((info.exit_code >> 8) & 0xff),
            signal => Exit::Killed(signal),
        })
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) {
        // An error would mean that the runtime is shutting down.
        let _ = self.pidfd.readable().await;
    }
}
