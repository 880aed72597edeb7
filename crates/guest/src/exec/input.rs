//! Standard input of a command: what several clients send becomes one stream, whole frames at a time.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use hyper::body::Incoming;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use warren_types::error::Result;

use crate::intake::{Intake, Next, Senders};
use crate::output::Output;

/// The agent's end of a command's stdin.
pub(crate) struct Input {
    senders: Senders,
    /// Held while a frame is written.
    pipe: Mutex<Option<pipe::Sender>>,
    closed: Cell<bool>,
}

impl Input {
    /// `None` for a command whose input is empty from the start.
    pub(super) fn new(pipe: Option<pipe::Sender>) -> Self {
        Self { senders: Senders::default(), closed: Cell::new(pipe.is_none()), pipe: Mutex::new(pipe) }
    }

    /// One more client that may send input.
    pub(crate) fn sender(&self) -> Result<Rc<Intake>> {
        self.senders.enter()
    }

    /// Writes what a client sends, and what it had sent when it left, until the command has ended. A client that merely
    /// leaves does not end the input; only its `StdinEnd` does.
    pub(crate) async fn feed(&self, intake: &Intake, body: Incoming, output: &Output) {
        let feeding = intake.feed(body, async |next| match next {
            Next::Stdin => self.write(intake).await,
            Next::StdinEnd => {
                self.pipe.lock().await.take();
                self.closed.set(true);
                false
            }
        });
        if !self.closed.get() {
            tokio::select! {
                () = feeding => {}
                _ = output.until(|| output.exit()) => {}
            }
        }
        intake.close();
        if self.closed.get() {
            self.pipe.lock().await.take();
        }
    }

    /// Whether there is any use in writing more.
    async fn write(&self, intake: &Intake) -> bool {
        let mut pipe = self.pipe.lock().await;
        while intake.has_payload() {
            let Some(sender) = &*pipe else { return false };
            let written = match sender.writable().await {
                Ok(()) => intake.write(|bytes| sender.try_write(bytes)),
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    // The command has closed its end and will not read again.
                    *pipe = None;
                    return false;
                }
            }
        }
        true
    }

    /// The command has ended.
    pub(super) fn close(&self) {
        self.closed.set(true);
        if let Ok(mut pipe) = self.pipe.try_lock() {
            pipe.take();
        }
    }
}
