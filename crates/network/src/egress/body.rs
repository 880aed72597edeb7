//! Bodies on their way through: never held whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::live::Live;
use super::open::Held;
use super::replace::Stream;
use super::secrets::Substitutes;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Told the name of the secret at each text that was replaced.
pub(crate) type Found = Box<dyn FnMut(&str) + Send>;

/// A body, with what is sought replaced, in its trailers too.
pub(crate) struct Replacing<B> {
    inner: B,
    live: Live,
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
    pub(crate) fn new(inner: B, live: Live, found: Found) -> Self {
        Self { inner, live, stream: Stream::default(), found, state: State::Body }
    }

    /// What can go on of a piece, or at the end of what is held back.
    fn replaced(&mut self, piece: Option<&Bytes>) -> Bytes {
        let Some(substitutes) = self.live.current() else { return self.stream.release(piece) };
        let found = |place: usize| (self.found)(&substitutes.names[place]);
        match piece {
            Some(piece) => self.stream.push(&substitutes.table, piece, found),
            None => self.stream.finish(&substitutes.table, found),
        }
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
                Some(Ok(data)) => this.replaced(Some(&data)),
                Some(Err(frame)) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        if let Some(substitutes) = this.live.current() {
                            replace_in_headers(&mut trailers, &substitutes);
                        }
                        this.state = State::Trailers(trailers);
                    }
                    this.replaced(None)
                }
                None => {
                    this.state = State::Done;
                    this.replaced(None)
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }
}

/// A body of a request that is under way. It breaks off when the request has to end; the request is over with its bodies.
pub(crate) struct Bound {
    inner: Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    held: Arc<Held>,
}

impl Bound {
    pub(crate) fn body(inner: Body, held: &Arc<Held>) -> Body {
        if inner.is_end_stream() {
            return inner;
        }
        let ended = Box::pin(held.close().clone().cancelled_owned());
        Body::new(Self { inner, ended, held: held.clone() })
    }
}

impl http_body::Body for Bound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        // To be told costs more than to look, and only who waits has to be told.
        let is_over = match &polled {
            Poll::Ready(_) => this.held.close().is_cancelled(),
            Poll::Pending => this.ended.as_mut().poll(cx).is_ready(),
        };
        if is_over {
            return Poll::Ready(Some(Err("what allowed this request is no longer in force".into())));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// In values. One that would then be no value any more is emptied, and a field that is named after a secret left out.
pub(crate) fn replace_in_headers(headers: &mut HeaderMap, substitutes: &Substitutes) {
    if let Some(table) = &substitutes.in_names {
        let named: Vec<_> =
            headers.keys().filter(|name| table.is_in(name.as_str().as_bytes())).cloned().collect();
        for name in named {
            headers.remove(name);
        }
    }
    for value in headers.values_mut() {
        if let Some(replaced) = substitutes.table.replace(value.as_bytes(), |_| {}) {
            *value = http::HeaderValue::from_bytes(&replaced)
                .unwrap_or_else(|_| http::HeaderValue::from_static(""));
        }
    }
}
