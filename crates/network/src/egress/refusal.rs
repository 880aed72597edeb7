//! Why something was not done, in words for whoever reads what their program got.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::body::Body;

/// Says that an answer is the gateway's and not the host's.
const HEADER: &str = "x-warren-egress";

#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    pub(crate) host: String,
    /// What asked for it: `allowlist`, `reach`, `form`, `secrets` or `upstream`.
    pub(crate) rule: &'static str,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, rule: &'static str, host: &str, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), host: host.to_owned(), rule }
    }

    pub(crate) fn not_allowed(host: &str, port: u16) -> Self {
        let error = format!(
            "{NOT_ALLOWED}: this sandbox may not reach {host} on port {port}; its egress policy would have to allow it"
        );
        Self::new(StatusCode::FORBIDDEN, "allowlist", host, error)
    }

    pub(crate) fn private(host: &str) -> Self {
        let error = format!("{PRIVATE}: {host} is at an address that no sandbox may reach");
        Self::new(StatusCode::FORBIDDEN, "reach", host, error)
    }

    pub(crate) fn form(host: &str, error: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "form", host, error)
    }

    pub(crate) fn upstream(status: StatusCode, host: &str, error: impl Into<String>) -> Self {
        Self::new(status, "upstream", host, error)
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let text =
            serde_json::json!({ "error": self.error, "host": self.host, "rule": self.rule }).to_string();
        let mut response = Response::new(Body::default());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(HEADER, HeaderValue::from_static("refused"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        *response.body_mut() = Body::new(Full::new(Bytes::from(text)).map_err(|never| match never {}));
        response
    }

    /// To a `CONNECT`: the reason is in the first line, as the contract has it; programs do not show more of it.
    pub(crate) fn to_connect(&self, reason: &'static str) -> Response<Body> {
        let mut response = Response::new(Body::default());
        *response.status_mut() = self.status;
        response.headers_mut().insert(HEADER, HeaderValue::from_static("refused"));
        response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(reason.as_bytes()));
        response
    }
}

/// As the contract has them.
pub(crate) const NOT_ALLOWED: &str = "host not in allowlist";
pub(crate) const PRIVATE: &str = "private IP blocked";
