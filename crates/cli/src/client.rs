//! The typed client of Warren's public API. Owns the address and the key; every request of the program is made here.
//!
//! It follows no redirects (a key must not travel to where a server points), uses no proxy (the WebSockets could not
//! follow it there), connects within [`CONNECT_LIMIT`], and bounds what it reads. Calls with JSON answers have an overall
//! time limit; streams have none, but may not fall silent for longer than [`SILENCE_LIMIT`].

mod audit;
mod checkpoints;
mod egress;
mod events;
mod exec;
mod files;
mod images;
mod logs;
mod mcp;
mod previews;
mod pty;
mod sandboxes;
mod scaling;
mod secrets;
mod usage;

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use warren_api::{API_KEY_HEADER, ErrorBody};
use warren_types::Secret;

use crate::config::Config;
use crate::failure::{About, Refused, Unreachable, chain_of, hinted};
use crate::output::printable;
use crate::ws;

pub(crate) use audit::AuditFilter;
pub(crate) use events::{Ended, EventStream};
pub(crate) use images::ArchiveImport;
pub(crate) use logs::{LogFilter, LogStream};
pub(crate) use mcp::{McpHeaders, McpTarget};
pub(crate) use sandboxes::ListFilter;
pub(crate) use usage::{UsageFilter, UsageWindow};

pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longer than a server waits for a sandbox to wake.
const CALL_LIMIT: Duration = Duration::from_secs(150);
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// Largest JSON answer that is read. Output of commands is the only thing that comes near.
const MAX_JSON_BYTES: usize = 64 * 1024 * 1024;
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// What to do about an answer that makes no sense.
const WHICH_SERVER: &str =
    "`warren config show` says which address is used; is it a Warren server of this version?";

pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<Secret<String>>,
}

/// An answer as we understand it, and as it was sent: `--json` prints the latter, unknown fields included.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    pub(crate) json: serde_json::Value,
    headers: HeaderMap,
}

// === impl Client ===

impl Client {
    pub(crate) fn new(config: Config) -> anyhow::Result<Self> {
        let base = config.base_url()?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .tcp_keepalive(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if base.scheme() == "http" {
            // No TLS will be spoken, so the system's certificates are not read: that takes time at every start, and fails
            // on a machine that has none.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| {
            let reason = chain_of(&error);
            hinted(
                format!("could not set up TLS: {reason}"),
                "install the system's certificates (package ca-certificates)",
            )
        })?;
        Ok(Self { http, base, key: config.api_key.map(|key| key.value) })
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Pushing segments encodes them; it can only fail for URLs without a host, which Config refuses.
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(segments);
        }
        url
    }

    fn request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        let mut request = self.http.request(method, self.url(segments));
        if let Some(key) = &self.key {
            request = request.header(API_KEY_HEADER, header_of(key)?);
        }
        Ok(request)
    }

    /// Sends a request and returns its answer once the head of a success is there.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let request = request.build()?;
        let repeatable = request.method() == Method::GET || request.method() == Method::HEAD;
        let about = self.about(request.url());
        let response =
            self.http.execute(request).await.map_err(|error| self.unreachable(error, repeatable))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refused(response, about).await.into())
    }

    /// Sends a request whose answer is a stream of that kind. Other programs say 200 too, with a page of theirs.
    async fn send_for(&self, request: RequestBuilder, kind: &str) -> anyhow::Result<Response> {
        let response = self.send(request).await?;
        let found =
            response.headers().get(CONTENT_TYPE).map(|found| String::from_utf8_lossy(found.as_bytes()));
        match found {
            Some(found) if found.starts_with(kind) => Ok(response),
            found => Err(hinted(
                format!(
                    "the server sent {} where {kind} was to come",
                    found.map_or_else(
                        || "something of no type".into(),
                        |found| printable(&found).into_owned()
                    )
                ),
                WHICH_SERVER,
            )),
        }
    }

    /// A call with a JSON answer; an empty one reads as `null`.
    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<Answer<T>> {
        let answer = async {
            let response = self.send(request).await?;
            self.read_json(response).await
        };
        tokio::time::timeout(CALL_LIMIT, answer).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", CALL_LIMIT.as_secs());
            Err(Unreachable { url: self.shown_base(), reason, maybe_done: true }.into())
        })
    }

    async fn read_json<T: DeserializeOwned>(&self, mut response: Response) -> anyhow::Result<Answer<T>> {
        let headers = response.headers().clone();
        let mut body = Vec::new();
        while let Some(chunk) = self.next_chunk(&mut response).await? {
            if body.len() + chunk.len() > MAX_JSON_BYTES {
                return Err(hinted(
                    format!("the server's answer is larger than {} MiB", MAX_JSON_BYTES >> 20),
                    "for a command's output, leave out --json",
                ));
            }
            body.extend_from_slice(&chunk);
        }
        let text: &[u8] = if body.iter().all(u8::is_ascii_whitespace) { b"null" } else { &body };
        let unreadable = |error: serde_json::Error| {
            hinted(format!("the server sent an answer that cannot be read: {error}"), WHICH_SERVER)
        };
        let json: serde_json::Value = serde_json::from_slice(text).map_err(unreadable)?;
        let value = T::deserialize(&json).map_err(unreadable)?;
        Ok(Answer { value, json, headers })
    }

    /// The next piece of a streamed answer.
    pub(crate) async fn next_chunk(&self, response: &mut Response) -> anyhow::Result<Option<Bytes>> {
        match tokio::time::timeout(SILENCE_LIMIT, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| self.unreachable(error, true).into()),
            Err(_) => {
                let reason = format!("the answer stopped coming for {} s", SILENCE_LIMIT.as_secs());
                Err(Unreachable { url: self.shown_base(), reason, maybe_done: false }.into())
            }
        }
    }

    /// Opens a WebSocket.
    async fn open(&self, segments: &[&str], query: &[(&str, String)]) -> anyhow::Result<ws::Opened> {
        let mut url = self.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let about = self.about(&url);
        let key = self.key.as_ref().map(header_of).transpose()?;
        ws::open(url, key, about).await
    }

    fn about(&self, url: &Url) -> About {
        let rest = url.path().strip_prefix(self.base.path()).unwrap_or_default();
        let mut segments = rest.split('/').filter(|segment| !segment.is_empty());
        match (segments.next(), segments.count()) {
            (Some("sandboxes"), 0 | 1) => About::Sandbox,
            (Some("snapshots"), _) => About::Snapshot,
            (Some("images"), _) => About::Image,
            _ => About::Other,
        }
    }

    fn shown_base(&self) -> String {
        self.base.as_str().trim_end_matches("/api").to_owned()
    }

    fn unreachable(&self, error: reqwest::Error, repeatable: bool) -> Unreachable {
        let maybe_done = !repeatable && !error.is_connect();
        Unreachable { url: self.shown_base(), reason: reason_of(&error.without_url()), maybe_done }
    }
}

impl<T> Answer<T> {
    /// A header's value, when it is text and not empty.
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().filter(|value| !value.is_empty()).map(str::to_owned)
    }
}

fn header_of(key: &Secret<String>) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(key.expose()).map_err(|_| {
        hinted("the API key holds characters that no key has", "copy it again, without line breaks")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The innermost cause says it best ("Connection refused"); the outer ones only say that a request was made.
fn reason_of(error: &reqwest::Error) -> String {
    if error.is_timeout() && error.is_connect() {
        return format!("no connection within {} s", CONNECT_LIMIT.as_secs());
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Reads the error a server answered with. Tolerates anything in the body.
async fn refused(mut response: Response, about: About) -> Refused {
    let status = response.status();
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    // An error whose text breaks off or dawdles is still an error with this status.
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            if body.len() + chunk.len() > MAX_ERROR_BYTES {
                break;
            }
            body.extend_from_slice(&chunk);
        }
    };
    let _ = tokio::time::timeout(CONNECT_LIMIT, read).await;
    refusal(status.as_u16(), location.as_deref(), &body, about)
}

/// Makes the error out of what came with it.
pub(crate) fn refusal(status: u16, location: Option<&str>, body: &[u8], about: About) -> Refused {
    if let Some(location) = location.filter(|_| (300..400).contains(&status)) {
        let message = format!("the server redirects to {location} ({status}); redirects are not followed");
        return Refused { status, message, retryable: false, about };
    }
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => Refused {
            status,
            message: format!("{} ({status})", body.error),
            retryable: body.retryable,
            about,
        },
        Err(_) => {
            let reason =
                reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            let message = format!("the server answered {status} {}", reason.unwrap_or_default());
            Refused { status, message: message.trim_end().to_owned(), retryable: false, about }
        }
    }
}

/// An error of a WebSocket or a socket as "could not reach".
pub(crate) fn unreachable(url: &Url, error: &dyn std::error::Error) -> Unreachable {
    Unreachable { url: url.origin().ascii_serialization(), reason: chain_of(error), maybe_done: false }
}
