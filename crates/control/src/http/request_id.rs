//! An outer layer: names every request, opens its span, and answers for handlers that panic.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{Extensions, HeaderMap, HeaderValue};
use tracing::{Instrument, field, info_span};
use warren_api::REQUEST_ID_HEADER;
use warren_types::{Error, SandboxId};

use super::errors::ApiError;

const MAX_ID_BYTES: usize = 128;
/// Longest part of a path that is logged.
const MAX_PATH_CHARS: usize = 256;

/// The id of a request, for handlers.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub Arc<str>);

/// The id that an outer layer gave a request.
pub(super) fn id_of(extensions: &Extensions) -> Option<Arc<str>> {
    extensions.get::<RequestId>().map(|id| Arc::clone(&id.0))
}

pub(super) async fn name_request(mut request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(generated_id);
    request.extensions_mut().insert(RequestId(id.to_str().unwrap_or_default().into()));
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use axum::{Router, middleware};
    use http::StatusCode;
    use tower::ServiceExt;
    use warren_api::ErrorBody;

    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_for() {
        let router = Router::new()
            .route("/", get(async || -> StatusCode { panic!("on purpose") }))
            .layer(middleware::from_fn(name_request));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key(REQUEST_ID_HEADER));
        let bytes = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let body: ErrorBody = serde_json::from_slice(&bytes).unwrap();
        assert!(!body.error.contains("on purpose"));
    }

    #[test]
    fn the_sandbox_of_a_request_is_read_from_its_path() {
        let id = |path| sandbox_in(path).map(|id| id.to_string());
        assert_eq!(id("/api/sandboxes/sb-0123abcd/exec").as_deref(), Some("sb-0123abcd"));
        assert_eq!(id("/sandboxes/sb-0123abcd").as_deref(), Some("sb-0123abcd"));
        assert_eq!(id("/api/sandboxes/sb-%00/exec"), None);
        assert_eq!(id("/api/tags"), None);
    }
}
