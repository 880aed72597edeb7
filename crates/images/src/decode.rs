//! Layers with their compression undone, on a thread of its own.
//!
//! One thread reads and inflates all layers one after the other; who unpacks takes the pieces from a queue, so both
//! work at once and the next layer is begun while files of this one are still written. Which compression it is shows in
//! the first bytes: what manifests say of it is often wrong.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::ImageError;
use crate::digest::{Digest, Hasher};
use crate::source::Layer;

/// A piece of a layer; pages of it are written in one call.
const PIECE: usize = 512 << 10;
/// Pieces that wait at most.
const WAITING: usize = 16;
const INPUT: usize = 256 << 10;

enum Message {
    Piece(Vec<u8>),
    End,
    Failed(ImageError),
}

/// What the thread that inflates has: run [`Producer::run`] on it.
pub(crate) struct Producer<'a> {
    layers: &'a [Layer],
    queue: SyncSender<Message>,
    spent: Receiver<Vec<u8>>,
    read: &'a AtomicU64,
}

/// The layers' bytes, one layer after the other: a reader is at its end where a layer ends, and begins the next after
/// [`Pieces::finish`].
pub(crate) struct Pieces<'a> {
    queue: Receiver<Message>,
    spent: Sender<Vec<u8>>,
    piece: Vec<u8>,
    consumed: usize,
    at_end: bool,
    hasher: Hasher,
    /// Bytes that may still come.
    allowed: u64,
    called_off: &'a AtomicBool,
}

/// `read` counts bytes of the layers' files.
pub(crate) fn pipe<'a>(
    layers: &'a [Layer],
    allowed: u64,
    read: &'a AtomicU64,
    called_off: &'a AtomicBool,
) -> (Producer<'a>, Pieces<'a>) {
    let (queue, pieces) = sync_channel(WAITING);
    let (give_back, spent) = channel();
    let consumer = Pieces {
        queue: pieces,
        spent: give_back,
        piece: Vec::new(),
        consumed: 0,
        at_end: false,
        hasher: Hasher::new(),
        allowed,
        called_off,
    };
    (Producer { layers, queue, spent, read }, consumer)
}

// === impl Producer ===

impl Producer<'_> {
    /// Until all is sent, or nobody takes it any more.
    pub(crate) fn run(self) {
        for layer in self.layers {
            let sent = match self.inflate(layer) {
                Ok(true) => self.queue.send(Message::End).is_ok(),
                Ok(false) => false,
                Err(error) => {
                    let _ = self.queue.send(Message::Failed(error));
                    false
                }
            };
            if !sent {
                return;
            }
        }
    }

    /// Whether anyone still listens.
    fn inflate(&self, layer: &Layer) -> Result<bool, ImageError> {
        let file = File::open(&layer.file).map_err(|error| ImageError::file("open", &layer.file, error))?;
        let mut reader = open(Counted { inner: file, read: self.read })?;
        loop {
            let mut piece = self.spent.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let length = fill(&mut reader, &mut piece).map_err(inflate_error)?;
            piece.truncate(length);
            if piece.is_empty() {
                return Ok(true);
            }
            if self.queue.send(Message::Piece(piece)).is_err() {
                return Ok(false);
            }
        }
    }
}

/// Reads until the buffer is full or nothing more comes.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A reader of what a layer holds.
pub(crate) fn open<'a>(input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ImageError> {
    let mut input = BufReader::with_capacity(INPUT, input);
    let start = input.fill_buf().map_err(inflate_error)?;
    let unknown = |name: &str| ImageError::Unsupported(format!("a layer is compressed with {name}"));
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(input))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Box::new(Zstd::new(input))),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(unknown("xz")),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Err(unknown("bzip2")),
        _ => Ok(Box::new(input)),
    }
}

fn inflate_error(error: io::Error) -> ImageError {
    match error.raw_os_error() {
        Some(_) => ImageError::io("read a layer", error),
        None => match error.downcast::<ImageError>() {
            Ok(ours) => ours,
            Err(error) => ImageError::Broken(format!("a layer cannot be decompressed: {error}")),
        },
    }
}

struct Counted<'a, R> {
    inner: R,
    read: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// Frames of zstd, one after the other; those to be skipped hold tables of contents.
struct Zstd<R: Read> {
    input: BufReader<R>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> Zstd<R> {
    fn new(input: BufReader<R>) -> Self {
        Self { input, decoder: FrameDecoder::new(), in_frame: false }
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        match self.decoder.reset(&mut self.input) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let length = u64::from(length);
                if io::copy(&mut self.input.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(said), Some(found)) if said != found => Err(io::Error::other("a checksum is wrong")),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if self.input.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin_frame()?;
            } else if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            } else if self.decoder.is_finished() {
                self.end_frame()?;
            } else {
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.input, blocks).map_err(io::Error::other)?;
            }
        }
    }
}

// === impl Pieces ===

impl Pieces<'_> {
    /// The digest of the layer that was read to its end.
    pub(crate) fn finish(&mut self) -> Result<Digest, ImageError> {
        while !self.fill_buf().map_err(inflate_error)?.is_empty() {
            self.consumed = self.piece.len();
        }
        self.at_end = false;
        Ok(std::mem::replace(&mut self.hasher, Hasher::new()).finish())
    }

    fn next(&mut self) -> Result<(), ImageError> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(ImageError::CalledOff);
        }
        // A thread that ended without a word has panicked; its scope says so.
        match self.queue.recv().unwrap_or(Message::Failed(ImageError::CalledOff)) {
            Message::End => self.at_end = true,
            Message::Failed(error) => return Err(error),
            Message::Piece(piece) => {
                let length = piece.len() as u64;
                self.allowed = self.allowed.checked_sub(length).ok_or_else(|| {
                    ImageError::TooLarge("its layers unpack to more than is taken".to_owned())
                })?;
                self.hasher.update(&piece);
                let _ = self.spent.send(std::mem::replace(&mut self.piece, piece));
                self.consumed = 0;
            }
        }
        Ok(())
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.consumed == self.piece.len() && !self.at_end {
            self.next().map_err(io::Error::other)?;
        }
        Ok(&self.piece[self.consumed..])
    }

    fn consume(&mut self, length: usize) {
        self.consumed += length;
    }
}
