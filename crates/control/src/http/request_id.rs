//! The outermost layer: names every request, opens its span, and answers for handlers that panic.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use tracing::{Instrument, field, info_span};
use warren_api::REQUEST_ID_HEADER;
use warren_types::{Error, SandboxId};

use super::errors::ApiError;

const MAX_ID_BYTES: usize = 128;
/// Longest part of a path that is logged.
const MAX_PATH_CHARS: usize = 256;

pub(super) async fn name_request(request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(generated_id);
    // The path alone: a query may carry a credential.
    let path = request.uri().path();
    let span = info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = path.get(..MAX_PATH_CHARS).unwrap_or(path),
        sandbox = sandbox_in(path).map(field::display),
    );
    let started = Instant::now();
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let _entered = span.enter();
    let mut response = answered.unwrap_or_else(|_| {
        tracing::error!("a handler panicked");
        ApiError::from(Error::internal("the server failed while it answered; its log says why"))
            .into_response()
    });
    tracing::debug!(status = response.status().as_u16(), elapsed = ?started.elapsed(), "answered");
    response.headers_mut().insert(REQUEST_ID_HEADER, id);
    response
}

/// The id a client gave, if it is fit to be repeated.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID_HEADER)?;
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (!id.is_empty() && id.len() <= MAX_ID_BYTES && id.as_bytes().iter().all(legal)).then(|| id.clone())
}

fn generated_id() -> HeaderValue {
    let id = uuid::Uuid::new_v4().simple().to_string();
    HeaderValue::from_str(&id).expect("hex digits make a header")
}

fn sandbox_in(path: &str) -> Option<SandboxId> {
    path.split('/').skip_while(|part| *part != "sandboxes").nth(1)?.parse().ok()
}
