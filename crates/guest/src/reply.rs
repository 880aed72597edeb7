//! Answers: their bodies, and how errors become statuses.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;
use warren_guest_api::frame::{self, HEADER};
use warren_guest_api::{MAX_JSON_BYTES, status_of};
use warren_types::{Error, ErrorKind};

pub(crate) type Reply = Response<ReplyBody>;

/// An error, and a status where it is not the one its kind has.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Option<StatusCode>,
    pub(crate) error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { status: None, error }
    }
}

/// Bytes to send: perhaps the header of a frame, then a payload that is not copied.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    header: [u8; HEADER],
    /// How much of the header is gone.
    skipped: usize,
    payload: Bytes,
}

impl Chunk {
    /// A frame of this kind.
    pub(crate) fn frame(kind: u8, payload: Bytes) -> Self {
        debug_assert!(payload.len() <= frame::MAX_PAYLOAD);
        Self { header: frame::Frame::header(kind, payload.len()), skipped: 0, payload }
    }
}

impl From<Bytes> for Chunk {
    fn from(payload: Bytes) -> Self {
        Self { header: [0; HEADER], skipped: HEADER, payload }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        HEADER - self.skipped + self.payload.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.skipped < HEADER { &self.header[self.skipped..] } else { &self.payload }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = [&self.header[self.skipped..], &self.payload[..]];
        let filled = parts.into_iter().filter(|part| !part.is_empty()).zip(slices);
        filled.map(|(part, slice)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        let from_header = count.min(HEADER - self.skipped);
        self.skipped += from_header;
        self.payload.advance(count - from_header);
    }
}

/// Something that produces a body piece by piece. An error breaks the stream off, which the other end can tell from
/// its end.
pub(crate) trait Source {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>>;
}

/// A body that a task or a thread writes.
pub(crate) struct Pieces(pub(crate) mpsc::Receiver<io::Result<Bytes>>);

impl Source for Pieces {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Chunk::from)))
    }
}

/// The body of an answer.
pub(crate) enum ReplyBody {
    Whole(Option<Bytes>),
    Streamed(Box<dyn Source>),
}

impl Body for ReplyBody {
    type Data = Chunk;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Chunk>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes.into())))),
            Self::Streamed(source) => {
                source.poll_next(context).map(|next| next.map(|next| next.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(_) => SizeHint::default(),
        }
    }
}

pub(crate) fn empty(status: StatusCode) -> Reply {
    with_status(status, ReplyBody::Whole(None))
}

pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Reply, Failure> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::internal(format!("the answer cannot be written as JSON: {error}")))?;
    if bytes.len() > MAX_JSON_BYTES {
        let message = format!("the answer would be longer than {MAX_JSON_BYTES} bytes; ask for less");
        return Err(Error::new(ErrorKind::TooLarge, message).into());
    }
    Ok(typed(status, "application/json", ReplyBody::Whole(Some(bytes.into()))))
}

/// Raw bytes, as they become known.
pub(crate) fn stream(status: StatusCode, source: impl Source + 'static) -> Reply {
    typed(status, "application/octet-stream", ReplyBody::Streamed(Box::new(source)))
}

/// Raw bytes that are all there.
pub(crate) fn whole(status: StatusCode, bytes: Bytes) -> Reply {
    typed(status, "application/octet-stream", ReplyBody::Whole(Some(bytes)))
}

pub(crate) fn with_length(mut reply: Reply, length: u64) -> Reply {
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    reply
}

fn typed(status: StatusCode, kind: &'static str, body: ReplyBody) -> Reply {
    let mut reply = with_status(status, body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

fn with_status(status: StatusCode, body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
}

/// The answer to a request that failed.
pub(crate) fn failure(failure: Failure) -> Reply {
    let Failure { status, error } = failure;
    let status = status
        .or_else(|| StatusCode::from_u16(status_of(error.kind)).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &error).unwrap_or_else(|_| empty(status))
}
