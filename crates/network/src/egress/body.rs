//! Bodies on their way through: never held whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;

use super::replace::{Stream, Table};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Told the place in the table of each text that was replaced.
pub(crate) type Found = Box<dyn FnMut(usize) + Send>;

/// A body, with the texts of a table replaced, in its trailers too.
pub(crate) struct Replacing<B> {
    inner: B,
    table: Arc<Table>,
    stream: Stream,
    found: Found,
    state: State,
}

enum State {
    Body,
    Trailers(HeaderMap),
    Done,
}

impl<B> Replacing<B> {
    pub(crate) fn new(inner: B, table: Arc<Table>, found: Found) -> Self {
        Self { inner, table, stream: Stream::default(), found, state: State::Body }
    }
}

impl<B> http_body::Body for Replacing<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, State::Done) {
                State::Body => {}
                State::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                State::Done => return Poll::Ready(None),
            }
            this.state = State::Body;
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx)).transpose().map_err(Into::into)?;
            let out = match frame.map(Frame::into_data) {
                Some(Ok(data)) => this.stream.push(&this.table, &data, &mut this.found),
                Some(Err(frame)) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        replace_in_headers(&mut trailers, &this.table);
                        this.state = State::Trailers(trailers);
                    }
                    this.stream.finish(&this.table, &mut this.found)
                }
                None => {
                    this.state = State::Done;
                    this.stream.finish(&this.table, &mut this.found)
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }
}

/// In values. One that would then be no value any more is emptied.
pub(crate) fn replace_in_headers(headers: &mut HeaderMap, table: &Table) {
    for value in headers.values_mut() {
        if let Some(replaced) = table.replace(value.as_bytes(), |_| {}) {
            *value = http::HeaderValue::from_bytes(&replaced)
                .unwrap_or_else(|_| http::HeaderValue::from_static(""));
        }
    }
}
