//! How long one connection is waited for.
//!
//! ```text
//!   accepted ── a whole head within `head` ──▶ under way ──▶ quiet ── its next byte within `idle`, then a whole head within `head`
//!                                                  ▲                                                                  │
//!                                                  └──────────────────────────────────────────────────────────────────┘
//! ```
//!
//! While a request is under way nothing is counted: long polls, streams, slow uploads and WebSockets take as long as they take. Over
//! HTTP/2 what comes between requests is no head but may be anything, so only the first request has to be there within `head`.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Patience;
use super::room::Room;

/// What an HTTP/2 client says first begins like that.
const HTTP_2: &[u8] = b"PRI ";

/// What is known of a connection.
pub(super) struct Attention {
    patience: Patience,
    room: Arc<Room>,
    /// Told when it must leave for others.
    leave: Arc<Notify>,
    state: Mutex<State>,
}

struct State {
    under_way: u32,
    /// There has been a request.
    asked: bool,
    /// There has been a byte.
    heard: bool,
    http_2: bool,
    /// Since when a head is waited for.
    head: Option<Instant>,
    /// Since when nothing is under way and nothing was written.
    quiet: Instant,
    /// Among those that ask for nothing.
    place: Option<u64>,
    /// The client does not take what it was sent.
    blocked: bool,
    /// Nothing more is read.
    over: bool,
}

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing before that moment.
    Again(Instant),
    /// It ends, with an answer to the half of a request.
    Unfinished,
    /// It ends: it asks for nothing.
    Idle,
}

/// A request that is under way, with its answer.
pub(super) struct UnderWay {
    attention: Arc<Attention>,
}

/// A body that is part of a request under way.
struct Counted {
    body: Body,
    _under_way: UnderWay,
}

/// The bytes of a connection.
pub(super) struct Watched<S> {
    stream: S,
    attention: Arc<Attention>,
}

// === impl Attention ===

impl Attention {
    pub(super) fn new(patience: Patience, room: Arc<Room>) -> Arc<Self> {
        let leave = Arc::new(Notify::new());
        let now = Instant::now();
        let state = State {
            under_way: 0,
            asked: false,
            heard: false,
            http_2: false,
            head: Some(now),
            quiet: now,
            place: Some(room.enter(&leave)),
            blocked: false,
            over: false,
        };
        Arc::new(Self { patience, room, leave, state: Mutex::new(state) })
    }

    /// Until others need its place.
    pub(super) async fn must_leave(&self) {
        self.leave.notified().await;
    }

    pub(super) fn look(&self) -> Look {
        let (now, state) = (Instant::now(), self.lock());
        // A head that begins after this is not late before that.
        let at_the_earliest = now + self.patience.head;
        if state.under_way > 0 {
            return Look::Again(at_the_earliest);
        }
        let (due, late) = match state.head {
            Some(since) => (since + self.patience.head, state.late()),
            None => (state.quiet + self.patience.idle, Look::Idle),
        };
        if due <= now { late } else { Look::Again(due.min(at_the_earliest)) }
    }

    /// How it ends when it has to, whatever the time.
    pub(super) fn late(&self) -> Look {
        self.lock().late()
    }

    /// The connection is to end when it is looked at next.
    pub(super) fn end(&self) {
        self.lock().over = true;
    }

    pub(super) fn begin<B>(self: &Arc<Self>, request: &Request<B>) -> UnderWay {
        let mut state = self.lock();
        state.under_way += 1;
        state.asked = true;
        state.head = None;
        state.http_2 = request.version() == Version::HTTP_2;
        if let Some(place) = state.place.take() {
            self.room.leave(place);
        }
        drop(state);
        UnderWay { attention: Arc::clone(self) }
    }

    fn end_one(&self) {
        let mut state = self.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            state.quiet = Instant::now();
            state.place = Some(self.room.enter(&self.leave));
        }
    }

    fn heard(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.heard {
            state.heard = true;
            state.http_2 = bytes.starts_with(HTTP_2);
        }
        // Some clients end what they send with an empty line too many.
        let is_more = bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
        if state.under_way == 0 && state.head.is_none() && !state.http_2 && is_more {
            state.head = Some(Instant::now());
        }
    }

    fn wrote(&self, asked: usize, written: &Poll<io::Result<usize>>) {
        let count = if let Poll::Ready(Ok(count)) = written { *count } else { 0 };
        let mut state = self.lock();
        state.blocked = count < asked;
        if state.asked && count > 0 {
            state.quiet = Instant::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        if let Some(place) = self.lock().place.take() {
            self.room.leave(place);
        }
    }
}

// === impl State ===

impl State {
    fn late(&self) -> Look {
        let unfinished = self.heard && self.head.is_some() && !self.http_2 && !self.blocked;
        if unfinished { Look::Unfinished } else { Look::Idle }
    }
}

// === impl UnderWay ===

impl UnderWay {
    /// The answer, which the request is under way with until it was sent.
    pub(super) fn answered(self, method: &Method, response: Response<Body>) -> Response<Body> {
        let is_tunnel = *method == Method::CONNECT && response.status().is_success();
        if is_tunnel || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // What it has become goes on after its answer, for as long as the connection does.
            self.attention.lock().under_way += 1;
        }
        response.map(|body| Body::new(Counted { body, _under_way: self }))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.attention.end_one();
    }
}

// === impl Counted ===

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Watched ===

impl<S> Watched<S> {
    pub(super) fn new(stream: S, attention: Arc<Attention>) -> Self {
        Self { stream, attention }
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
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
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.attention.lock().over {
            this.say_late(context);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        if !bytes.is_empty() {
            this.attention.heard(bytes);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.attention.wrote(bytes.len(), &written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.attention.wrote(pieces.iter().map(|piece| piece.len()).sum(), &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
