//! Whole folders as tar streams, in both directions.
//!
//! Each transfer has a thread of its own, since it waits for the disk and the other end in turn; there are at most
//! [`MAX_TRANSFERS`], and none while nothing is transferred.

mod entries;
mod pack;
mod unpack;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use warren_types::Error;
use warren_types::error::Result;

use crate::account::Account;
use crate::buffer::{self, Buffer};
use crate::paths::GuestPath;
use crate::reply::Pieces;
use crate::request::next_bytes;

const MAX_TRANSFERS: usize = 4;
/// Pieces under way between a thread and its connection.
const QUEUE: usize = 4;
const STACK_BYTES: usize = 512 * 1024;

/// Counts the transfers under way.
#[derive(Clone, Default)]
pub(crate) struct Transfers(Arc<AtomicUsize>);

struct Place(Transfers);

impl Transfers {
    fn enter(&self) -> Result<Place> {
        let place = Place(self.clone());
        if self.0.fetch_add(1, Ordering::Relaxed) >= MAX_TRANSFERS {
            return Err(Error::unavailable(format!(
                "{MAX_TRANSFERS} folders are being transferred; try again"
            )));
        }
        Ok(place)
    }

    fn run(&self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let place = self.enter()?;
        let thread = std::thread::Builder::new().name("archive".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            work();
            drop(place);
        });
        started
            .map(drop)
            .map_err(|_| Error::unavailable("the sandbox has no room for another thread; try again"))
    }

    /// A folder as a stream. What goes wrong before there is anything to send is the answer.
    pub(crate) async fn pack(&self, path: GuestPath) -> Result<Pieces> {
        let (pieces, queue) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        self.run(move || match pack::open(&path) {
            Err(error) => drop(opened.send(Err(error))),
            Ok(folder) => {
                let mut output = PieceWriter {
                    pieces: pieces.clone(),
                    buffer: Buffer::take(),
                    filled: 0,
                    opened: Some(opened),
                };
                let done = pack::pack(&folder, &mut output).and_then(|()| output.flush());
                if let Err(error) = done {
                    match output.opened.take() {
                        Some(opened) => drop(opened.send(Err(not_packed(&path, &error)))),
                        None => drop(pieces.blocking_send(Err(error))),
                    }
                }
            }
        })?;
        answer.await.unwrap_or_else(|_| Err(Error::internal("the folder could not be packed")))?;
        Ok(Pieces(queue))
    }

    /// Unpacks a stream into a folder. An archive that is refused or breaks off half-way leaves what came before.
    pub(crate) async fn unpack(
        &self,
        path: GuestPath,
        mut body: Incoming,
        account: Arc<Account>,
    ) -> Result<()> {
        let (pieces, queue) = mpsc::channel(QUEUE);
        let (done, answer) = oneshot::channel();
        self.run(move || {
            let mut input = PieceReader { queue, rest: Bytes::new(), ended: false };
            let result = unpack::unpack(&path, &mut input, &account);
            if result.is_ok() {
                input.drain();
            }
            let _ = done.send(result);
        })?;
        loop {
            let piece = match next_bytes(&mut body).await {
                Some(Ok(bytes)) => Piece::Bytes(bytes),
                None => Piece::End,
                // Not the end it should have: the thread finds out from the closed queue.
                Some(Err(_)) => break,
            };
            let is_end = matches!(piece, Piece::End);
            if pieces.send(piece).await.is_err() || is_end {
                break;
            }
        }
        drop(pieces);
        answer.await.unwrap_or_else(|_| Err(Error::internal("the archive could not be unpacked")))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn not_packed(path: &GuestPath, error: &io::Error) -> Error {
    Error::conflict(format!("{path} could not be packed: {error}"))
}

/// Sends what is written in large pieces.
struct PieceWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: Buffer,
    filled: usize,
    /// Told when there is a first piece.
    opened: Option<oneshot::Sender<Result<()>>>,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == buffer::SIZE {
            self.flush()?;
        }
        let count = bytes.len().min(buffer::SIZE - self.filled);
        self.buffer[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            if let Some(opened) = self.opened.take() {
                opened.send(Ok(())).map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
            let full = std::mem::replace(&mut self.buffer, Buffer::take());
            let piece = full.freeze(std::mem::take(&mut self.filled));
            self.pieces.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }
}

enum Piece {
    Bytes(Bytes),
    /// The body has ended as it should.
    End,
}

/// Reads what arrives.
struct PieceReader {
    queue: mpsc::Receiver<Piece>,
    rest: Bytes,
    ended: bool,
}

impl PieceReader {
    /// Takes the padding behind an archive.
    fn drain(&mut self) {
        let _ = io::copy(self, &mut io::sink());
    }
}

impl Read for PieceReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.queue.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = into.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}

/// Reads a tar stream to its end or its first fault, writing nothing. For the fuzz targets.
pub fn fuzz_entries(archive: &[u8]) {
    let mut entries = entries::Entries::new(archive);
    while let Ok(Some(entry)) = entries.next() {
        let _ = crate::paths::entry_name(&entry.name);
        let _ = crate::paths::entry_name(&entry.link);
    }
}
