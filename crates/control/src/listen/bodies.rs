//! The bodies of a request under way, as far as it matters to its connection how far they are.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::attention::{Attention, UnderWay};

/// What comes with a request. It is told when that was all.
pub(super) struct Received {
    body: Incoming,
    understands: bool,
    attention: Arc<Attention>,
}

/// The body of an answer, which its request is under way for.
pub(super) struct Counted {
    body: Body,
    /// The last piece of it is on its way to the client.
    is_given: bool,
    under_way: UnderWay,
}

// === impl Received ===

impl Received {
    pub(super) fn new(body: Incoming, understands: bool, attention: Arc<Attention>) -> Self {
        Self { body, understands, attention }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.attention.received(self.understands);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Counted ===

impl Counted {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        Self { body, is_given: false, under_way }
    }

    /// Who asks for the next piece has got rid of the last one.
    fn take(&mut self) {
        if std::mem::take(&mut self.is_given) {
            self.under_way.attention().take();
        }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.take();
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            self.is_given = true;
            self.under_way.attention().give();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.take();
    }
}
