//! One stretch of a log: whole in memory or whole in the file, in both places as the frames a client gets.
//!
//! Small outputs are packed together as encoded frames, large ones stay the buffers they were read into.

use bytes::{Buf, Bytes, BytesMut};
use warren_guest_api::frame::{self, Frame, HEADER};

/// Outputs from this size on are kept as they are.
const LARGE: usize = 4 * 1024;
/// Encoded bytes packed into one piece.
const PACK: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Consecutive output, as it goes to a client.
#[derive(Debug, Clone)]
pub(crate) enum Batch {
    /// Whole frames, and how many bytes of output they hold.
    Frames(Bytes, u64),
    One(Stream, Bytes),
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) start: u64,
    /// Bytes of output.
    length: u64,
    /// Bytes it takes as frames.
    pub(super) encoded: usize,
    /// Where it is, once it has moved to the file.
    pub(super) slot: Option<u32>,
    pieces: Vec<(u64, Batch)>,
    pack: Pack,
}

/// Frames that can still be added to.
#[derive(Debug, Default)]
struct Pack {
    start: u64,
    length: u64,
    frames: Vec<u8>,
    /// Where the last frame begins, and its offset in the log.
    last: Option<(usize, u64)>,
}

impl Stream {
    pub(crate) fn kind(self) -> u8 {
        match self {
            Self::Stdout => frame::STDOUT,
            Self::Stderr => frame::STDERR,
        }
    }

    fn from_kind(kind: u8) -> Option<Self> {
        match kind {
            frame::STDOUT => Some(Self::Stdout),
            frame::STDERR => Some(Self::Stderr),
            _ => None,
        }
    }
}

impl Batch {
    /// Bytes of output in it.
    pub(crate) fn output(&self) -> u64 {
        match self {
            Self::Frames(_, output) => *output,
            Self::One(_, bytes) => bytes.len() as u64,
        }
    }

    /// Bytes as frames.
    fn encoded(&self) -> usize {
        match self {
            Self::Frames(frames, _) => frames.len(),
            Self::One(_, bytes) => HEADER + bytes.len(),
        }
    }

    /// Calls `each` with every run of output in order.
    pub(crate) fn for_each(self, mut each: impl FnMut(Stream, Bytes)) {
        match self {
            Self::One(stream, bytes) => each(stream, bytes),
            Self::Frames(mut frames, _) => {
                while let Some((stream, length)) = head(&frames) {
                    frames.advance(HEADER);
                    each(stream, frames.split_to(length));
                }
            }
        }
    }
}

/// The stream and payload length of the first frame; `None` when these are not whole frames of output.
fn head(frames: &[u8]) -> Option<(Stream, usize)> {
    let header: [u8; HEADER] = frames.get(..HEADER)?.try_into().ok()?;
    let [kind, a, b, c, d] = header;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    let fits = length <= frames.len() - HEADER;
    Some((Stream::from_kind(kind)?, length)).filter(|_| fits)
}

/// The part of `frames` from `from` to `to`, where their first byte of output has the offset `start`. `None` when
/// they are not frames of output or do not reach that far.
pub(super) fn cut(frames: &Bytes, start: u64, from: u64, to: u64) -> Option<Batch> {
    let mut at = start;
    let mut position = 0;
    // A frame that `from` falls into is made again for the rest of it.
    let mut front: Option<(Stream, Bytes)> = None;
    let mut whole = None;
    while at < to {
        let (stream, length) = head(&frames[position..])?;
        let (payload, next) = (position + HEADER, position + HEADER + length);
        let end = at + length as u64;
        if end > from && (at < from || end > to) {
            let low = payload + usize::try_from(from.saturating_sub(at)).ok()?;
            let high = payload + usize::try_from(to.min(end) - at).ok()?;
            let part = frames.slice(low..high);
            if at < from {
                front = Some((stream, part));
            } else {
                // The last frame, cut short: alone if nothing stands before it, else left for the next read.
                if front.is_none() && whole.is_none() {
                    front = Some((stream, part));
                }
                break;
            }
        } else if end > from && length > 0 {
            whole.get_or_insert((position, at, next, end)).2 = next;
            if let Some(whole) = &mut whole {
                whole.3 = end;
            }
        }
        (at, position) = (end, next);
    }
    match (front, whole) {
        (None, None) => None,
        (Some((stream, part)), None) => Some(Batch::One(stream, part)),
        (None, Some((first, first_offset, last, end))) => {
            Some(Batch::Frames(frames.slice(first..last), end - first_offset))
        }
        (Some((stream, part)), Some((first, first_offset, last, end))) => {
            let mut joined = BytesMut::with_capacity(HEADER + part.len() + last - first);
            joined.extend_from_slice(&Frame::header(stream.kind(), part.len()));
            joined.extend_from_slice(&part);
            joined.extend_from_slice(&frames[first..last]);
            Some(Batch::Frames(joined.freeze(), part.len() as u64 + end - first_offset))
        }
    }
}

impl Segment {
    pub(super) fn new(start: u64) -> Self {
        let pack = Pack { start, ..Pack::default() };
        Self { start, length: 0, encoded: 0, slot: None, pieces: Vec::new(), pack }
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.length
    }

    /// Bytes of output that surely fit in.
    pub(super) fn room(&self, size: usize) -> usize {
        size.saturating_sub(self.encoded + HEADER)
    }

    /// Adds output that fits in.
    pub(super) fn push(&mut self, stream: Stream, bytes: Bytes) {
        let length = bytes.len() as u64;
        if bytes.len() >= LARGE {
            self.close_pack();
            self.encoded += HEADER + bytes.len();
            self.pieces.push((self.end(), Batch::One(stream, bytes)));
            self.length += length;
            self.pack.start = self.end();
        } else {
            self.encoded += self.pack.push(stream, &bytes);
            self.length += length;
            if self.pack.frames.len() >= PACK {
                self.close_pack();
            }
        }
    }

    /// Nothing more will be added.
    pub(super) fn seal(&mut self) {
        self.close_pack();
        self.pieces.shrink_to_fit();
    }

    fn close_pack(&mut self) {
        let end = self.end();
        let pack = std::mem::replace(&mut self.pack, Pack { start: end, ..Pack::default() });
        if pack.length > 0 {
            self.pieces.push((pack.start, Batch::Frames(Bytes::from(pack.frames), pack.length)));
        }
    }

    /// What memory holds from `from`, up to `to` and perhaps less.
    pub(super) fn read(&self, from: u64, to: u64) -> Option<Batch> {
        if from >= self.pack.start {
            return self.pack.read(from, to);
        }
        let index = self.pieces.partition_point(|(start, batch)| start + batch.output() <= from);
        match self.pieces.get(index)? {
            (start, Batch::One(stream, bytes)) => {
                let low = usize::try_from(from - start).ok()?;
                let high = usize::try_from(to - start).ok()?.min(bytes.len());
                Some(Batch::One(*stream, bytes.slice(low..high)))
            }
            (start, Batch::Frames(frames, output)) => cut(frames, *start, from, to.min(start + output)),
        }
    }

    /// Its pieces, to be written out; they add up to `encoded` bytes.
    pub(super) fn pieces(&self) -> Vec<Batch> {
        debug_assert_eq!(self.pieces.iter().map(|(_, batch)| batch.encoded()).sum::<usize>(), self.encoded);
        self.pieces.iter().map(|(_, batch)| batch.clone()).collect()
    }

    /// It is in the file now.
    pub(super) fn forget_memory(&mut self, slot: u32) {
        self.slot = Some(slot);
        self.pieces = Vec::new();
    }
}

impl Pack {
    /// Adds output and returns by how many bytes the frames grew.
    fn push(&mut self, stream: Stream, bytes: &[u8]) -> usize {
        let before = self.frames.len();
        match self.last {
            Some((position, _)) if self.frames[position] == stream.kind() => {
                self.frames.extend_from_slice(bytes);
                let payload = self.frames.len() - position - HEADER;
                self.frames[position..position + HEADER]
                    .copy_from_slice(&Frame::header(stream.kind(), payload));
            }
            _ => {
                self.last = Some((before, self.start + self.length));
                self.frames.extend_from_slice(&Frame::header(stream.kind(), bytes.len()));
                self.frames.extend_from_slice(bytes);
            }
        }
        self.length += bytes.len() as u64;
        self.frames.len() - before
    }

    fn read(&self, from: u64, to: u64) -> Option<Batch> {
        // Mostly a reader has all but the last frame.
        let (position, start) = match self.last {
            Some((position, start)) if from >= start => (position, start),
            _ => (0, self.start),
        };
        cut(&Bytes::copy_from_slice(&self.frames[position..]), start, from, to)
    }
}
