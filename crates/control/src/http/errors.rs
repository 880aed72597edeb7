//! The one conversion from errors to answers.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use warren_api::ErrorBody;
use warren_api::error::status_of;
use warren_types::{Error, ErrorKind};

use crate::app::sandboxes::create::CreateError;
use crate::store::StoreError;

/// Seconds after which it is worth asking again, when the server could not serve.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let body = ErrorBody::from(Error::new(ErrorKind::Invalid, message));
        Self { status, body }
    }

    /// For what has a status of its own besides that of its kind.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn into_body(self) -> ErrorBody {
        self.body
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let status =
            StatusCode::from_u16(status_of(error.kind)).expect("every kind of error has a valid status");
        Self { status, body: error.into() }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Error::from(error).into()
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::LimitReached { active, limit } => {
                let message = format!(
                    "{active} sandboxes are running and {limit} are allowed; delete or hibernate one, or raise the limit"
                );
                let mut refused = Self::from(Error::new(ErrorKind::LimitReached, message));
                refused.body.active = Some(active);
                refused.body.limit = Some(limit);
                refused
            }
            CreateError::Other(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), error = self.body.error, "refused");
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

/// Whatever has no route. Some clients know routes that this server has no ability for yet: they end here too.
pub(super) async fn not_found(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{method} {path} is not available on this server; /openapi.json lists what is");
    Error::not_found(message).into()
}

pub(super) async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not allowed on this path; /openapi.json lists what is"),
    )
}
