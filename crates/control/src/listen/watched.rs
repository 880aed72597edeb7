//! The bytes of a connection.
//!
//! **What is not taken.** Whatever waits to be written for longer than `taken` while the client takes nothing of it is given up, and the
//! connection with it: an answer, a stream, a WebSocket.
//!
//! **Who says no more.** A client may close its sending half when it has sent its request, and wait for the answer (RFC 9112, 9.6). One
//! that has gone away looks the same, and what it asked for has to end. So the end is kept back from HTTP while there is a request that
//! has come whole, and told when the client turns out to be gone:
//!
//! ```text
//!   end ── answered before the next look, or being answered ──▶ told after the answer
//!    │
//!    └ no answer yet ── 102 Processing every so often ── the network says that nobody is there ──▶ told at once
//! ```
//!
//! A client that is there passes over the 102 (RFC 9110, 15.2); a computer whose program has gone answers it with a reset. Where it
//! cannot be said, to HTTP/1.0 or within an answer that pauses, the end is told as it would be without any of this.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::attention::{Attention, Progress};
use super::stream::Stream;

/// How often it is looked whether a client that says no more is there. Most answers are there before the first time.
const LOOK: Duration = Duration::from_millis(500);
/// The same while it is answered: an answer that pauses for so long is for nobody. Short, since whoever looks in again and again, and
/// goes each time, would be counted as many until then.
const LOOK_ANSWERED: Duration = Duration::from_millis(100);
/// Longest time between two 102s.
const MAX_PAUSE: Duration = Duration::from_secs(16);
const PROCESSING: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

pub(super) struct Watched {
    stream: Stream,
    attention: Arc<Attention>,
    /// Until when what waits to be written may wait.
    taken: Option<Pin<Box<Sleep>>>,
    half: Option<HalfClosed>,
}

/// A client that says no more.
struct HalfClosed {
    look: Pin<Box<Sleep>>,
    /// When it is to be told next that there will be an answer, and how long after that again.
    next: Instant,
    pause: Duration,
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(stream: Stream, attention: Arc<Attention>) -> Self {
        Self { stream, attention, taken: None, half: None }
    }

    /// Answers for a head that did not come. Nothing else is on its way then, so it fits.
    fn say_late(&mut self, context: &mut Context<'_>) {
        let body = r#"{"error":"the head of this request did not come in time; send it at once"}"#;
        let answer = format!(
            "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = Pin::new(&mut self.stream);
        if stream.as_mut().poll_write(context, answer.as_bytes()).is_ready() {
            let _ = stream.as_mut().poll_flush(context);
            let _ = stream.poll_shutdown(context);
        }
    }

    /// The end of what the client says. Ready when that is to be known.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let progress = match self.attention.progress() {
                None | Some(Progress::Comes | Progress::Open) => {
                    self.half = None;
                    return Poll::Ready(());
                }
                Some(progress) => progress,
            };
            let look = if matches!(progress, Progress::Answered(_)) { LOOK_ANSWERED } else { LOOK };
            let half = self.half.get_or_insert_with(|| HalfClosed::new(look));
            ready!(half.look.as_mut().poll(context));
            let now = Instant::now();
            half.look.as_mut().reset(now + look);
            let is_there = !self.stream.is_gone()
                && match progress {
                    Progress::Comes | Progress::Open | Progress::Waits { understands: false } => false,
                    Progress::Answered(written) => now < written + LOOK_ANSWERED,
                    // What was said before is not taken yet; that has its own time.
                    Progress::Waits { .. } if now < half.next || self.attention.is_blocked() => true,
                    Progress::Waits { .. } => {
                        half.next = now + half.pause;
                        half.pause = (half.pause * 2).min(MAX_PAUSE);
                        let written = Pin::new(&mut self.stream).poll_write(context, PROCESSING);
                        let _ = Pin::new(&mut self.stream).poll_flush(context);
                        matches!(written, Poll::Ready(Ok(count)) if count == PROCESSING.len())
                    }
                };
            if !is_there {
                return Poll::Ready(());
            }
        }
    }

    /// What is waited for until the client takes something: not for ever.
    fn within<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.taken = None;
            return polled;
        }
        let patience = self.attention.patience();
        let taken = self.taken.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(taken.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.attention.is_over() {
            this.say_late(context);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        if !bytes.is_empty() {
            this.attention.heard(bytes);
        } else if matches!(polled, Poll::Ready(Ok(()))) && buffer.remaining() > 0 {
            ready!(this.poll_end(context));
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.attention.wrote(bytes.len(), &written);
        self.within(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.attention.wrote(pieces.iter().map(|piece| piece.len()).sum(), &written);
        self.within(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.within(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within(context, polled)
    }
}

// === impl HalfClosed ===

impl HalfClosed {
    fn new(look: Duration) -> Self {
        let now = Instant::now();
        Self { look: Box::pin(tokio::time::sleep(look)), next: now, pause: 2 * LOOK }
    }
}
