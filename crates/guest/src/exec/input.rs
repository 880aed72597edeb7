//! Standard input of a command or terminal: what several clients send becomes one stream, whole frames at a time.

use std::cell::Cell;
use std::io;

use bytes::Bytes;
use hyper::body::Incoming;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use warren_guest_api::frame::{Decoder, Frame};

use crate::output::Output;
use crate::request::next_bytes;

/// The agent's end of a command's stdin.
pub(crate) struct Input {
    /// Held while a frame is written.
    pipe: Mutex<Option<pipe::Sender>>,
    closed: Cell<bool>,
}

impl Input {
    /// `None` for a command whose input is empty from the start.
    pub(super) fn new(pipe: Option<pipe::Sender>) -> Self {
        Self { closed: Cell::new(pipe.is_none()), pipe: Mutex::new(pipe) }
    }

    /// Writes what a client sends until it stops sending or the command has ended. A client that merely leaves does
    /// not end the input; only its [`Frame::StdinEnd`] does.
    pub(crate) async fn feed(&self, body: Incoming, output: &Output) {
        let feeding = each_frame(body, async |frame| match frame {
            Frame::Stdin(bytes) => self.write(bytes).await,
            Frame::StdinEnd => {
                self.pipe.lock().await.take();
                self.closed.set(true);
                false
            }
            _ => false,
        });
        tokio::select! {
            () = feeding => {}
            _ = output.until(|| output.exit()) => {}
        }
        if self.closed.get() {
            self.pipe.lock().await.take();
        }
    }

    /// Whether there is any use in writing more.
    async fn write(&self, mut bytes: Bytes) -> bool {
        let mut pipe = self.pipe.lock().await;
        while !bytes.is_empty() {
            let Some(sender) = &*pipe else { return false };
            let written = match sender.writable().await {
                Ok(()) => sender.try_write(&bytes),
                Err(error) => Err(error),
            };
            match written {
                Ok(count) => drop(bytes.split_to(count)),
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

/// Hands over the frames of a body, one after the other, until `take` has enough, the body ends, or it holds something
/// that is not a frame.
pub(crate) async fn each_frame(mut body: Incoming, mut take: impl AsyncFnMut(Frame) -> bool) {
    let mut decoder = Decoder::default();
    while let Some(Ok(bytes)) = next_bytes(&mut body).await {
        decoder.push(&bytes);
        drop(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if !take(frame).await {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
