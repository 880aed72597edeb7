//! Input on its way from one sender to a command or terminal.
//!
//! ```text
//!   body ──receive, always at once──▶ backlog ──hand_on, as it is read──▶ command
//!                                        │
//!   answer ◀──────── grants ◀────────────┘
//! ```
//!
//! The contract is `warren_guest_api::input`. A frame is handed on once all of it is there, so that what several senders
//! send is merged frame by frame and one that stops in the middle of a frame holds up nobody.

mod backlog;

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_guest_api::frame::Frame;
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

pub use self::backlog::{Backlog, Next};
use crate::notice::{Notice, Waiter};
use crate::reply::{Chunk, Source};
use crate::request::next_bytes;

/// Senders of one command: twice its clients, because those that have left count until what they sent is taken.
const MAX_SENDERS: usize = 128;

/// How many may send to one command or terminal.
pub(crate) struct Senders(Arc<Semaphore>);

/// The input of one sender.
pub(crate) struct Intake {
    backlog: RefCell<Backlog>,
    state: Cell<State>,
    /// Bytes came, or the last ones have come.
    arrived: Rc<Notice>,
    /// There may be something to grant, or nothing more to say.
    granted: Rc<Notice>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has sent all it will.
    Ended,
    /// No more input is wanted.
    Done,
    /// The sender broke the contract.
    Refused,
}

/// The answer to a sender.
pub(crate) struct Grants {
    intake: Rc<Intake>,
    changed: Waiter,
}

// === impl Senders ===

impl Default for Senders {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_SENDERS)))
    }
}

impl Senders {
    /// Lets one more sender in.
    pub(crate) fn enter(&self) -> Result<Rc<Intake>> {
        let place = Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let message = format!("input of {MAX_SENDERS} clients waits to be read already");
            Error::new(ErrorKind::Unavailable, message)
        })?;
        Ok(Rc::new(Intake {
            backlog: RefCell::default(),
            state: Cell::new(State::Open),
            arrived: Rc::default(),
            granted: Rc::default(),
            _place: place,
        }))
    }
}

// === impl Intake ===

impl Intake {
    pub(crate) fn grants(self: &Rc<Self>) -> Grants {
        Grants { intake: Rc::clone(self), changed: self.granted.waiter() }
    }

    /// Takes the sender's body in and hands its frames over, until `hand_on` wants no more or all there was has been
    /// handed over. Call [`Intake::close`] after it.
    pub(crate) async fn feed(&self, mut body: Incoming, mut hand_on: impl AsyncFnMut(Next) -> bool) {
        let mut handing = pin!(async {
            while let Some(next) = self.next().await {
                if !hand_on(next).await {
                    return;
                }
            }
        });
        while self.state.get() == State::Open {
            tokio::select! {
                // What is there goes on before more is taken in, so that little piles up.
                biased;
                () = &mut handing => return,
                piece = next_bytes(&mut body) => self.receive(piece),
            }
        }
        // The sender has left. What it sent before waits for the command; what breaks the contract does not.
        if self.state.get() == State::Ended {
            handing.await;
        }
    }

    /// No more input is wanted, and the sender is told.
    pub(crate) fn close(&self) {
        if self.state.get() != State::Refused {
            self.become_state(State::Done);
        }
    }

    /// Whether the frame that was last handed over has bytes that were not written yet.
    pub(crate) fn has_payload(&self) -> bool {
        !self.backlog.borrow().payload().is_empty()
    }

    /// Gives `write` bytes of the frame that was last handed over; they are gone as far as it says.
    pub(crate) fn write(&self, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        let mut backlog = self.backlog.borrow_mut();
        let count = write(backlog.payload())?;
        backlog.take(count);
        if backlog.has_grant() {
            self.granted.notify();
        }
        Ok(())
    }

    /// Takes in a piece of the body, or its end.
    fn receive(&self, piece: Option<std::result::Result<Bytes, hyper::Error>>) {
        match piece {
            Some(Ok(bytes)) if self.backlog.borrow_mut().push(&bytes).is_ok() => {}
            Some(Ok(_)) => self.become_state(State::Refused),
            Some(Err(_)) | None => self.become_state(State::Ended),
        }
        self.arrived.notify();
    }

    fn become_state(&self, state: State) {
        self.state.set(state);
        self.granted.notify();
    }

    /// Waits for the next whole frame; `None` when there will be none.
    async fn next(&self) -> Option<Next> {
        let next = self.arrived.until(|| {
            let mut backlog = self.backlog.borrow_mut();
            match backlog.next_frame() {
                Ok(Some(next)) => Some(Some(next)),
                Ok(None) => {
                    if backlog.has_grant() {
                        self.granted.notify();
                    }
                    (self.state.get() != State::Open).then_some(None)
                }
                Err(_) => {
                    self.become_state(State::Refused);
                    Some(None)
                }
            }
        });
        next.await
    }
}

// === impl Grants ===

impl Source for Grants {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        let state = self.intake.state.get();
        if state == State::Refused {
            return Poll::Ready(Some(Err(io::Error::other("the sender of input broke the contract"))));
        }
        if let Some(bytes) = self.intake.backlog.borrow_mut().grant() {
            return Poll::Ready(Some(Ok(Frame::InputTaken(bytes).to_bytes().into())));
        }
        // What the sender sent before it left is ours to hand on.
        if matches!(state, State::Ended | State::Done) {
            return Poll::Ready(None);
        }
        self.changed.register(context);
        Poll::Pending
    }
}
