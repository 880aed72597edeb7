//! The serial port to the node, as a stream for each time a node is connected.
//!
//! A port is opened once and never closed, which would drop what has arrived. While no node is connected it reports
//! "hang-up" without end, so it is looked at on a timer then; only while one is there is it given to the runtime to
//! watch, through a copy of the descriptor.

use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::wait_for;
use crate::sys;

/// How often an unconnected port is looked at: often at first, because a machine that was just restored is about to be
/// connected.
const SOON: Duration = Duration::from_millis(2);
const SOON_FOR: u32 = 500;
const LATER: Duration = Duration::from_millis(25);

/// Opens the port of that name, which may take a moment to appear.
pub(super) fn open(name: &str, deadline: Duration) -> io::Result<OwnedFd> {
    let device = find(name, deadline)?;
    wait_for(&device, deadline)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(&device, flags, Mode::empty()).map_err(Into::into)
}

fn find(name: &str, deadline: Duration) -> io::Result<PathBuf> {
    let ports = Path::new("/sys/class/virtio-ports");
    let started = std::time::Instant::now();
    loop {
        for entry in fs::read_dir(ports).into_iter().flatten().flatten() {
            let has = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if has.trim_end() == name {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        if started.elapsed() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("there is no serial port {name}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port and nobody at its other end.
pub(crate) struct Port {
    device: OwnedFd,
}

impl Port {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Waits for a node.
    pub(crate) async fn connected(&self) -> io::Result<Connection> {
        let mut looks = 0;
        while !self.has_host()? {
            looks += 1;
            tokio::time::sleep(if looks < SOON_FOR { SOON } else { LATER }).await;
        }
        let copy = rustix::io::fcntl_dupfd_cloexec(&self.device, 3)?;
        Ok(Connection { device: sys::watch(copy, Interest::READABLE | Interest::WRITABLE)? })
    }

    fn has_host(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.device, PollFlags::IN | PollFlags::OUT)];
        rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default()))?;
        Ok(!polled[0].revents().contains(PollFlags::HUP))
    }
}

/// A node at the other end; ends with the end of its stay.
pub(crate) struct Connection {
    device: AsyncFd<OwnedFd>,
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.device.poll_read_ready(context))?;
            // Asked first: what would block takes the answer away.
            let is_closed = guard.ready().is_read_closed();
            let space = buffer.initialize_unfilled();
            match guard.try_io(|device| rustix::io::read(device.as_fd(), &mut *space).map_err(Into::into)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // The node has gone: it would be ready for ever.
                Err(_would_block) if is_closed => return Poll::Ready(Ok(())),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.device.poll_write_ready(context))?;
            let is_closed = guard.ready().is_write_closed();
            match guard.try_io(|device| rustix::io::write(device.as_fd(), bytes).map_err(Into::into)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) if is_closed => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Serves one node after another.
pub(crate) async fn each_connection<F: Future<Output = ()>>(
    device: OwnedFd,
    mut serve: impl FnMut(Connection) -> F,
) -> io::Result<()> {
    let port = Port::new(device);
    loop {
        serve(port.connected().await?).await;
    }
}
