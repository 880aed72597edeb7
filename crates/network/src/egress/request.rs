//! What is changed in a request on its way out.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::body::{Body, Found, Replacing};
use super::budget::Budget;
use super::live::Live;
use super::secrets::{HostSecrets, Substitutes};

/// Up to here a body is changed as a whole, so that its length can be said before it is sent: not every server takes one that
/// does not say it. Beyond, and when too much is held already, it is sent in chunks.
const WHOLE_BODY: u64 = 1024 * 1024;
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const WEBSOCKET_EXTENSIONS: HeaderName = HeaderName::from_static("sec-websocket-extensions");

/// Whether the program that asks calls itself by something that begins so.
pub(crate) fn is_of<B>(request: &Request<B>, programs: &[&str]) -> bool {
    let agent = request.headers().get(USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    programs.iter().any(|program| agent.starts_with(program.as_bytes()))
}

/// Removes what is said to the next hop only.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != HOST)
        .collect();
    // A trailer is told to whoever reads it, all the way.
    let trailers = headers.get(TE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in named {
        headers.remove(name);
    }
    for name in
        [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE]
    {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether it asks for a WebSocket.
pub(crate) fn wants_websocket<B>(request: &Request<B>) -> bool {
    let says = |name: &HeaderName, word: &str| {
        let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    let is_http_1 = request.version() == Version::HTTP_11;
    is_http_1
        && request.method() == Method::GET
        && says(&CONNECTION, "upgrade")
        && says(&UPGRADE, "websocket")
}

pub(crate) fn ask_for_websocket(headers: &mut HeaderMap, may_be_compressed: bool) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if !may_be_compressed {
        headers.remove(WEBSOCKET_EXTENSIONS);
    }
}

/// Puts values in place of tokens, and adds whose were used to `used`. In words what cannot be done.
pub(crate) fn substitute(
    parts: &mut Parts,
    secrets: &HostSecrets,
    used: &mut BTreeSet<String>,
) -> Result<(), &'static str> {
    if let Some(header) = &secrets.header {
        for (name, value) in parts.headers.iter_mut().filter(|(name, _)| **name != HOST) {
            let replaced = match basic(value) {
                Some(text) if *name == AUTHORIZATION => replace(header, &text, used)
                    .map(|text| format!("Basic {}", STANDARD.encode(text)).into_bytes()),
                _ => replace(header, value.as_bytes(), used),
            };
            if let Some(replaced) = replaced {
                *value = HeaderValue::from_bytes(&replaced).map_err(|_| {
                    "the value of the secret has characters, such as an end of line, that no header may have"
                })?;
                value.set_sensitive(true);
            }
        }
    }
    if let Some(query) = &secrets.query
        && let Some(changed) = with_query(parts, query, used)
    {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query =
            Some(changed.try_into().map_err(|_| "the query is too long with the secret in it")?);
        parts.uri =
            http::Uri::from_parts(uri).map_err(|_| "the address is not valid with the secret in it")?;
    }
    if secrets.seal.is_some() {
        parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    Ok(())
}

/// The body, with values in place of tokens. `used` is told names as they come by, which may be after this returns.
pub(crate) async fn substitute_in_body(
    parts: &mut Parts,
    body: Incoming,
    mut live: Live,
    budget: &Budget,
    mut used: Found,
) -> Result<Body, hyper::Error> {
    let length = body.size_hint().exact();
    if length == Some(0) {
        return Ok(pass(body));
    }
    let place = length.filter(|length| *length <= WHOLE_BODY).and_then(|length| budget.place(length));
    let Some(place) = place else {
        parts.headers.remove(CONTENT_LENGTH);
        return Ok(Body::new(Replacing::new(body, live, used)));
    };
    let whole = body.collect().await?;
    if whole.trailers().is_some() {
        return Ok(Body::new(Replacing::new(whole, live, used)));
    }
    let whole = whole.to_bytes();
    let replaced = live
        .current()
        .and_then(|now| now.table.replace(&whole, |place| used(&now.names[place])))
        .map_or(whole, Into::into);
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(replaced.len()));
    Ok(Body::new(place.hold(Full::new(replaced).map_err(|never| match never {}))))
}

pub(crate) fn pass(body: Incoming) -> Body {
    Body::new(body.map_err(Into::into))
}

/// `Expect` has been answered by then: reading the body is what says "go on" to the client.
pub(crate) fn settle(headers: &mut HeaderMap) {
    headers.remove(EXPECT);
}

fn replace(substitutes: &Substitutes, text: &[u8], used: &mut BTreeSet<String>) -> Option<Vec<u8>> {
    substitutes.table.replace(text, |place| {
        used.insert(substitutes.names[place].clone());
    })
}

fn with_query(parts: &Parts, query: &Substitutes, used: &mut BTreeSet<String>) -> Option<String> {
    let replaced = replace(query, parts.uri.query()?.as_bytes(), used)?;
    Some(format!("{}?{}", parts.uri.path(), String::from_utf8(replaced).ok()?))
}

/// User and password of basic authentication, if a header has them.
fn basic(value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, text) = value.as_bytes().split_at_checked(6)?;
    scheme.eq_ignore_ascii_case(b"basic ").then(|| STANDARD.decode(text.trim_ascii()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/a?b=c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn what_is_for_the_next_hop_is_removed() {
        let mut parts = request(&[
            ("connection", "keep-alive, X-Mine, Host"),
            ("x-mine", "1"),
            ("host", "a"),
            ("te", "trailers"),
            ("proxy-authorization", "x"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(parts.headers_mut());
        let mut names: Vec<_> = parts.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "host", "te"]);
    }

    #[test]
    fn a_websocket_is_asked_for_with_both_headers() {
        assert!(wants_websocket(&request(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket")
        ])));
        assert!(!wants_websocket(&request(&[("connection", "upgrade"), ("upgrade", "h2c")])));
        assert!(!wants_websocket(&request(&[("upgrade", "websocket")])));
    }
}
