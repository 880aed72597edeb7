//! How much goes over a sandbox's connections. The firewall limits packets that pass it; those to a proxy inside a slot do
//! not, and what is held back here need not be dropped there.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::io::Io;

/// Bytes that may go at once after a while without any; as the firewall has it.
const BURST: u64 = 16_000_000;

/// Bytes of one connection that go before account is taken of them: pieces are often small.
const QUANTUM: usize = 64 * 1024;

/// Of one sandbox, for all of its connections together.
pub(crate) struct Meter {
    up: Bucket,
    down: Bucket,
}

/// So many bytes a second.
struct Bucket {
    rate: u64,
    since: Instant,
    /// When all that has gone is paid for, in nanoseconds.
    paid_at: AtomicU64,
}

/// A stream of a sandbox, which waits when too much has gone.
pub(crate) struct Metered<S> {
    inner: S,
    meter: Arc<Meter>,
    up: Way,
    down: Way,
}

/// One direction of it.
#[derive(Default)]
struct Way {
    /// What has gone and is not accounted for.
    gone: usize,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Meter {
    /// Each way.
    pub(crate) fn new(megabytes_per_second: u32) -> Arc<Self> {
        let bucket = || Bucket {
            rate: u64::from(megabytes_per_second.max(1)) * 1_000_000,
            since: Instant::now(),
            paid_at: AtomicU64::new(0),
        };
        Arc::new(Self { up: bucket(), down: bucket() })
    }
}

impl Bucket {
    /// Takes account of bytes that have gone; how long no more may go.
    fn take(&self, bytes: usize) -> Option<Pin<Box<Sleep>>> {
        let nanoseconds = |bytes: u64| bytes.saturating_mul(1_000_000_000) / self.rate;
        let cost = nanoseconds(bytes as u64);
        let now = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let paid = |before: u64| before.max(now) + cost;
        let before = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(paid(at)));
        let ahead = paid(before.unwrap_or_else(|at| at)) - now;
        let pause = ahead.checked_sub(nanoseconds(BURST)).filter(|pause| *pause > 0)?;
        Some(Box::pin(sleep(Duration::from_nanos(pause))))
    }
}

impl<S: Io> Metered<S> {
    pub(crate) fn new(inner: S, meter: Arc<Meter>) -> Self {
        Self { inner, meter, up: Way::default(), down: Way::default() }
    }
}

impl<S> Drop for Metered<S> {
    /// Who opens many connections for little each pays for all of it.
    fn drop(&mut self) {
        self.meter.up.take(self.up.gone);
        self.meter.down.take(self.down.gone);
    }
}

impl Way {
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.pause {
            ready!(sleep.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    fn went(&mut self, bytes: usize, bucket: &Bucket) {
        self.gone += bytes;
        if self.gone >= QUANTUM {
            self.pause = bucket.take(std::mem::take(&mut self.gone));
        }
    }
}

impl<S: Io> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.up.wait(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.up.went(buf.filled().len() - before, &this.meter.up);
        Poll::Ready(Ok(()))
    }
}

impl<S: Io> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.down.wait(cx));
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.down.went(written, &this.meter.down);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.down.wait(cx));
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        this.down.went(written, &this.meter.down);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test(start_paused = true)]
    async fn all_connections_of_a_sandbox_share_a_rate_each_way() {
        const EACH: usize = 10_000_000;
        let meter = Meter::new(2);
        let begun = Instant::now();
        let all = (0..4).map(|number| {
            let (mut far, near) = duplex(100_000);
            let mut near = Metered::new(near, meter.clone());
            async move {
                let mut bytes = vec![0; EACH];
                if number % 2 == 0 {
                    let sent = vec![1; EACH];
                    let _ = tokio::join!(near.read_exact(&mut bytes), far.write_all(&sent));
                } else {
                    let sent = vec![1; EACH];
                    let _ = tokio::join!(far.read_exact(&mut bytes), near.write_all(&sent));
                }
            }
        });
        futures_util::future::join_all(all).await;
        // 4 MB above the burst, each way at the same time.
        let took = begun.elapsed().as_secs_f64();
        assert!((1.8..2.3).contains(&took), "{took} s");
    }
}
