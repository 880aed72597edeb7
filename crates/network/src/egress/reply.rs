//! What is changed in a reply on its way in.

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;

use super::body::{Body, Replacing, replace_in_headers};
use super::decode::{Decoded, Encoding};
use super::live::Live;
use super::request::{pass, strip_hop_by_hop};

/// The reply as the sandbox may have it: with tokens where values stood. In words why it may not.
pub(crate) fn seal(
    reply: Response<Incoming>,
    method: &Method,
    seal: Option<Live>,
) -> Result<Response<Body>, String> {
    let (mut parts, body) = reply.into_parts();
    // Read before anything is taken away: a host may name any of its headers to be for the next hop only.
    let encoding = encoding(&parts.headers);
    strip_hop_by_hop(&mut parts.headers);
    let sealing = seal.and_then(|mut live| Some((live.current()?, live)));
    let Some((substitutes, live)) = sealing else { return Ok(Response::from_parts(parts, pass(body))) };
    replace_in_headers(&mut parts.headers, &substitutes);
    parts.extensions.remove::<hyper::ext::ReasonPhrase>();
    let has_no_body = *method == Method::HEAD
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || parts.status.is_informational()
        || body.is_end_stream();
    if has_no_body {
        return Ok(Response::from_parts(parts, pass(body)));
    }
    let body = changed(&mut parts, body, encoding?, live);
    Ok(Response::from_parts(parts, body))
}

fn changed(parts: &mut Parts, body: Incoming, encoding: Option<Encoding>, live: Live) -> Body {
    parts.headers.remove(CONTENT_LENGTH);
    let ignore = Box::new(|_: &str| {});
    match encoding {
        Some(encoding) => {
            parts.headers.remove(CONTENT_ENCODING);
            Body::new(Replacing::new(Decoded::new(body, encoding), live, ignore))
        }
        None => Body::new(Replacing::new(body, live, ignore)),
    }
}

/// Of the content, or of its transfer: hyper undoes the pieces of that and nothing else.
fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, String> {
    let names = |header, none: &'static str| {
        let values = headers.get_all(header).iter().map(|value| value.to_str().unwrap_or("?"));
        values
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(move |name| !name.is_empty() && !name.eq_ignore_ascii_case(none))
    };
    let mut names = names(CONTENT_ENCODING, "identity").chain(names(TRANSFER_ENCODING, "chunked"));
    let encoding = match names.next().map(str::to_ascii_lowercase).as_deref() {
        None => None,
        Some("gzip" | "x-gzip") => Some(Encoding::Gzip),
        Some("deflate") => Some(Encoding::Deflate),
        Some(other) => return Err(unreadable(other)),
    };
    match names.next() {
        Some(second) => Err(unreadable(second)),
        None => Ok(encoding),
    }
}

fn unreadable(encoding: &str) -> String {
    let encoding: String = encoding.chars().filter(char::is_ascii_graphic).take(32).collect();
    format!(
        "the host answered in the encoding {encoding:?} although it was asked for none; where a secret is used, replies are \
         read to take it out again, and this one cannot be"
    )
}
