//! Folders as tar streams. Packing and unpacking are plain reading and writing on threads of their own; short channels join
//! them to the network, so memory stays flat however large a folder is.

mod pack;
mod unpack;

use std::io::{Error, ErrorKind, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use pack::pack;
pub(crate) use unpack::unpack;

/// Pieces between a thread and the network.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 256 * 1024;

/// A piece of an archive, or why there is no more.
pub(crate) type Piece = Result<Bytes, Error>;

/// What was left out, since it is neither file, folder nor link.
#[derive(Debug, Default)]
pub(crate) struct Skipped(pub(crate) u64);

/// What was unpacked, and what is to be known of it.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) skipped: Skipped,
    /// What the archive says of itself: which files are not what they were, because they changed while they were packed.
    pub(crate) comment: Option<String>,
}

/// What the packing side writes to.
pub(crate) struct PieceWriter {
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
}

/// What the unpacking side reads from.
pub(crate) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
}

pub(crate) fn channel() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(PIECES)
}

// === impl PieceWriter ===

impl PieceWriter {
    pub(crate) fn new(pieces: mpsc::Sender<Piece>) -> Self {
        Self { pieces, buffer: Vec::with_capacity(PIECE_BYTES) }
    }

    /// Ends the stream as broken. Without this the other side would take the end of the pieces for the end of the archive.
    pub(crate) fn fail(self, error: &Error) {
        // When nobody takes pieces any more, nobody needs telling.
        let _ = self.pieces.blocking_send(Err(Error::new(error.kind(), error.to_string())));
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let taken = bytes.len().min(PIECE_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| Error::from(ErrorKind::BrokenPipe))
    }
}

// === impl PieceReader ===

impl PieceReader {
    pub(crate) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new() }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
