//! Bytes from a task to a thread.

use std::io::{self, Read};

use tokio::sync::mpsc::Receiver;

/// The reading end. An empty piece is the end of the stream; without one it was called off.
pub(super) struct Pump {
    pieces: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    consumed: usize,
    ended: bool,
}

impl Pump {
    pub(super) fn new(pieces: Receiver<Vec<u8>>) -> Self {
        Self { pieces, piece: Vec::new(), consumed: 0, ended: false }
    }
}

impl Read for Pump {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.consumed == self.piece.len() && !self.ended {
            let called_off = || io::Error::other(crate::ImageError::CalledOff);
            self.piece = self.pieces.blocking_recv().ok_or_else(called_off)?;
            self.consumed = 0;
            self.ended = self.piece.is_empty();
        }
        let length = (&self.piece[self.consumed..]).read(buffer)?;
        self.consumed += length;
        Ok(length)
    }
}
