//! Refusals that are sent before the body of their request was read.
//!
//! The server then closes the connection rather than read what may be large. A client that was not told would send its
//! next request into a closed connection, so the answer announces it. Many clients read the answer when they have sent
//! everything; to close under them would reset the connection and take the answer with it. So what they send is read and let go of,
//! for a while.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::runtime::Handle;

/// How long what nobody wants is read, in all and between two pieces. Less than a head may take: there is none to come.
const READ_ON: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(5);

/// A body that tells whether it was read to its end, and is read on when it is dropped before.
struct Watched {
    body: Body,
    ended: Arc<AtomicBool>,
    /// Its client waits to be told that it may send it, and will not be.
    held_back: bool,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
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

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.held_back
            && !self.ended.load(Ordering::Relaxed)
            && let Ok(runtime) = Handle::try_current()
        {
            let unread = std::mem::take(&mut self.body);
            runtime.spawn(async { tokio::time::timeout(READ_ON, let_go(unread)).await });
        }
    }
}

async fn let_go(mut body: Body) {
    while let Ok(Some(Ok(_))) = tokio::time::timeout(SILENCE, body.frame()).await {}
}

pub(super) async fn announce_close(request: Request, next: Next) -> Response {
    // HTTP/2 has no such header: there a stream ends and the connection goes on.
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let ended = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&ended);
    let held_back = request.headers().contains_key(header::EXPECT);
    let watch = |body| Body::new(Watched { body, ended: watched, held_back });
    let mut response = next.run(request.map(watch)).await;
    let refused = response.status().is_client_error() || response.status().is_server_error();
    if refused && !ended.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
