//! A command's output on its way to a client.
//!
//! ```text
//!   Started ──▶ replay ──▶ ReplayEnd ──▶ live ──▶ Exit ──▶ end of the body
//!                              └── when only the replay is wanted ──▶ end of the body
//! ```
//!
//! A body that is to go on and ends without `Exit` was broken off; there is no other way for it to lack one.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use warren_guest_api::exec::Exit;
use warren_guest_api::frame::{Frame, MAX_PAYLOAD};
use warren_types::ExecId;

use crate::log::{Batch, Stream};
use crate::output::Reader;
use crate::reply::{Chunk, Source};

/// The frames of who reads a command's output; dropping it detaches a client.
pub(crate) struct ExecStream {
    id: ExecId,
    reader: Reader,
    course: Course,
    phase: Phase,
}

/// What a stream consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// What there is, a mark, and what follows.
    ReplayAndLive,
    /// What there is, and a mark.
    Replay,
    /// All that comes, without a mark.
    Live,
}

enum Phase {
    Starting,
    Replaying { to: u64 },
    Live,
    Done,
}

impl ExecStream {
    pub(crate) fn new(id: ExecId, reader: Reader, course: Course) -> Self {
        Self { id, reader, course, phase: Phase::Starting }
    }

    fn started(&self) -> Chunk {
        let mut id = [0; 8];
        for (byte, digit) in id.iter_mut().zip(self.id.as_str().bytes()) {
            *byte = digit;
        }
        Frame::Started { id, offset: self.reader.at() }.to_bytes().into()
    }
}

impl Source for ExecStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        let chunk = match self.phase {
            Phase::Starting => {
                self.phase = match self.course {
                    Course::ReplayAndLive | Course::Replay => {
                        Phase::Replaying { to: self.reader.output().end() }
                    }
                    Course::Live => Phase::Live,
                };
                Ok(self.started())
            }
            Phase::Replaying { to } => match ready!(self.reader.poll_batch(to, context)) {
                Some(batch) => batch.map(to_chunk),
                None => {
                    self.phase = if self.course == Course::Replay { Phase::Done } else { Phase::Live };
                    Ok(Frame::ReplayEnd.to_bytes().into())
                }
            },
            Phase::Live => match ready!(self.reader.poll_batch(u64::MAX, context)) {
                Some(batch) => batch.map(to_chunk),
                None => {
                    self.phase = Phase::Done;
                    match self.reader.output().exit() {
                        Some(exit) => Ok(exit_chunk(exit)),
                        None => Err(io::Error::other("the output ended before the command")),
                    }
                }
            },
            Phase::Done => return Poll::Ready(None),
        };
        Poll::Ready(Some(chunk))
    }
}

pub(crate) fn exit_chunk(exit: Exit) -> Chunk {
    Frame::Exit(exit).to_bytes().into()
}

pub(crate) fn to_chunk(batch: Batch) -> Chunk {
    match batch {
        Batch::Frames(frames, _) => frames.into(),
        Batch::One(stream, bytes) => Chunk::frame(stream.kind(), bytes.slice(..bytes.len().min(MAX_PAYLOAD))),
    }
}

/// What is kept of one of the two streams, raw, up to where it is at the start.
pub(crate) struct SingleStream {
    reader: Reader,
    stream: Stream,
    to: u64,
}

impl SingleStream {
    pub(crate) fn new(reader: Reader, stream: Stream) -> Self {
        let to = reader.output().end();
        Self { reader, stream, to }
    }
}

impl Source for SingleStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        loop {
            let batch = match ready!(self.reader.poll_batch(self.to, context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(batch)) => batch,
            };
            let bytes = only(self.stream, batch);
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes.into())));
            }
        }
    }
}

fn only(stream: Stream, batch: Batch) -> Bytes {
    if let Batch::One(of, bytes) = batch {
        return if of == stream { bytes } else { Bytes::new() };
    }
    let mut kept = BytesMut::new();
    batch.for_each(|of, bytes| {
        if of == stream {
            kept.extend_from_slice(&bytes);
        }
    });
    kept.freeze()
}
