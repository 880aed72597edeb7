//! How long one connection is waited for.
//!
//! ```text
//!   accepted ── a whole head within `head` ──▶ under way ──▶ quiet ── its next byte within `idle`, then a whole head within `head`
//!                                                  ▲                                                                  │
//!                                                  └──────────────────────────────────────────────────────────────────┘
//! ```
//!
//! While a request is under way nothing is counted: long polls, streams, slow uploads and WebSockets take as long as they take. But
//! what there is to send has to be taken: a connection of which the client takes no byte within `taken` ends, with all that was held for
//! it. Over HTTP/1.1 and in tunnels that is seen where bytes are written ([`super::watched`]), over HTTP/2, which does not write what the client
//! makes no room for, at the bodies of answers ([`super::bodies`]). Over HTTP/2 what comes between requests is no head but may be anything, so
//! only the first request has to be there within `head`.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Patience;
use super::bodies::{Counted, Received};
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
    request: Progress,
    /// Since when a head is waited for.
    head: Option<Instant>,
    /// Since when nothing is under way and nothing was written.
    quiet: Instant,
    /// Among those that ask for nothing.
    place: Option<u64>,
    /// The client does not take what it was sent.
    blocked: bool,
    /// Pieces of answers that are on their way to the client.
    given: u32,
    /// When there was last nothing to take, or some of it was taken.
    taken: Instant,
    /// Nothing more is read.
    over: bool,
}

/// How far the newest request is, over HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not all of it has come.
    Comes,
    /// It was answered before, or has become a tunnel.
    Open,
    /// There is no answer yet. Its client understands that there will be one, or is too old for that.
    Waits { understands: bool },
    /// It is answered, and some of that was written last then.
    Answered(Instant),
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
    /// It ends: the client does not take what it asked for.
    Stuck,
}

/// A request that is under way, with its answer.
pub(super) struct UnderWay {
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
            request: Progress::Comes,
            head: Some(now),
            quiet: now,
            place: Some(room.enter(&leave)),
            blocked: false,
            given: 0,
            taken: now,
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
            return match state.taken + self.patience.taken {
                due if state.given == 0 || due > now => Look::Again(at_the_earliest),
                _ => Look::Stuck,
            };
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

    /// How long what is sent may not be taken.
    pub(super) fn patience(&self) -> Duration {
        self.patience.taken
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// How far the newest request is, if it is one over HTTP/1 that is under way.
    pub(super) fn progress(&self) -> Option<Progress> {
        let state = self.lock();
        (state.under_way > 0 && !state.http_2).then_some(state.request)
    }

    pub(super) fn begin(self: &Arc<Self>, request: Request<Incoming>) -> (UnderWay, Request<Body>) {
        let mut state = self.lock();
        state.under_way += 1;
        state.asked = true;
        state.head = None;
        state.http_2 = request.version() == Version::HTTP_2;
        state.request = Progress::Comes;
        if let Some(place) = state.place.take() {
            self.room.leave(place);
        }
        drop(state);
        let understands = request.version() == Version::HTTP_11;
        if request.body().is_end_stream() {
            self.received(understands);
        }
        let request = request.map(|body| Body::new(Received::new(body, understands, Arc::clone(self))));
        (UnderWay { attention: Arc::clone(self) }, request)
    }

    /// All of a request has come.
    pub(super) fn received(&self, understands: bool) {
        let mut state = self.lock();
        if state.request == Progress::Comes {
            state.request = Progress::Waits { understands };
        }
    }

    /// A piece of an answer is on its way.
    pub(super) fn give(&self) {
        let mut state = self.lock();
        if state.given == 0 {
            state.taken = Instant::now();
        }
        state.given += 1;
    }

    /// It was taken, or will never be.
    pub(super) fn take(&self) {
        self.lock().given -= 1;
    }

    fn end_one(&self) {
        let mut state = self.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            state.quiet = Instant::now();
            state.place = Some(self.room.enter(&self.leave));
        }
    }

    pub(super) fn heard(&self, bytes: &[u8]) {
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

    pub(super) fn wrote(&self, asked: usize, written: &Poll<io::Result<usize>>) {
        let count = if let Poll::Ready(Ok(count)) = written { *count } else { 0 };
        let (now, mut state) = (Instant::now(), self.lock());
        state.blocked = count < asked;
        if count == 0 {
            return;
        }
        state.taken = now;
        if state.asked {
            state.quiet = now;
        }
        if let Progress::Answered(written) = &mut state.request {
            *written = now;
        }
    }

    /// Whether the client has not taken all it was sent.
    pub(super) fn is_blocked(&self) -> bool {
        self.lock().blocked
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
        let mut state = self.attention.lock();
        let is_tunnel = *method == Method::CONNECT && response.status().is_success();
        if is_tunnel || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // What it has become goes on after its answer, for as long as the connection does.
            state.under_way += 1;
            state.request = Progress::Open;
        } else {
            state.request = match state.request {
                Progress::Comes | Progress::Open => Progress::Open,
                Progress::Waits { .. } | Progress::Answered(_) => Progress::Answered(Instant::now()),
            };
        }
        drop(state);
        response.map(|body| Body::new(Counted::new(body, self)))
    }

    pub(super) fn attention(&self) -> &Attention {
        &self.attention
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.attention.end_one();
    }
}
