//! Why something was not done, in words for whoever reads what their program got.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::io::{self, AsyncWriteExt as _};

use super::body::Body;
use super::io::Io;
use super::request::is_of;

/// Says that an answer is the gateway's and not the host's.
const HEADER: &str = "x-warren-egress";

#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    pub(crate) host: String,
    /// What asked for it: `allowlist`, `reach`, `form`, `secrets` or `upstream`.
    pub(crate) rule: &'static str,
    /// Of a whole tunnel: noted when that was asked for, and said to every request inside it.
    pub(crate) of_tunnel: bool,
}

/// How it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// In JSON.
    Fields,
    /// In plain text, of which git shows what it is told, and of nothing else.
    Words,
}

impl Shown {
    pub(crate) fn to<B>(request: &Request<B>) -> Self {
        if is_of(request, &["git/"]) { Self::Words } else { Self::Fields }
    }
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, rule: &'static str, host: &str, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), host: host.to_owned(), rule, of_tunnel: false }
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

    pub(crate) fn response(&self, shown: Shown) -> Response<Body> {
        let (text, kind) = match shown {
            Shown::Fields => (self.text(), "application/json"),
            Shown::Words => (format!("{}\n", self.error), "text/plain"),
        };
        let mut response = Response::new(Body::default());
        *response.status_mut() = self.status;
        // Python's clients, pip among them, show the words of the first line and no more.
        if let Some(reason) = self.reason() {
            response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(reason.as_bytes()));
        }
        let headers = response.headers_mut();
        headers.insert(HEADER, HeaderValue::from_static("refused"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        *response.body_mut() = Body::new(Full::new(Bytes::from(text)).map_err(|never| match never {}));
        response
    }

    /// To a `CONNECT`: the reason is in the first line, as the contract has it; few programs show more of it.
    pub(crate) fn to_connect(&self) -> Response<Body> {
        let reason = self.reason().unwrap_or(match self.status {
            StatusCode::GATEWAY_TIMEOUT => "name not found in time",
            _ => "name not found",
        });
        let mut response = self.response(Shown::Fields);
        response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(reason.as_bytes()));
        response
    }

    /// To a client of which nothing is known but that it speaks no TLS.
    pub(crate) async fn write(&self, stream: &mut impl Io) -> io::Result<()> {
        let (status, text) = (self.status, self.text());
        let head = format!(
            "HTTP/1.1 {status}\r\n{HEADER}: refused\r\ncontent-type: application/json\r\n\
             cache-control: no-store\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        stream.write_all(format!("{head}{text}").as_bytes()).await?;
        stream.shutdown().await
    }

    /// What stopped it in a few words, where the contract has some.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self.rule {
            "allowlist" => Some(NOT_ALLOWED),
            "reach" => Some(PRIVATE),
            _ => None,
        }
    }

    fn text(&self) -> String {
        serde_json::json!({ "error": self.error, "host": self.host, "rule": self.rule }).to_string()
    }
}

/// As the contract has them.
pub(crate) const NOT_ALLOWED: &str = "host not in allowlist";
pub(crate) const PRIVATE: &str = "private IP blocked";
