//! What a request shows to open a preview, and what of that its program may see: nothing.
//!
//! The cookie is bound to one preview by what is signed, and to its host by being set without a domain. A browser sends it
//! with whatever any page of the same site asks for, and previews under one domain are one site to it; so it counts only for
//! requests that a page of the preview itself makes, or that open it.

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use jiff::Timestamp;
use warren_api::previews::PREVIEW_TOKEN_HEADER;

use crate::app::previews::LINK_PARAMETER;
use crate::app::previews::gate::{Admitted, Shown};

/// With TLS the prefix keeps other hosts from setting it.
const COOKIE_TLS: &str = "__Host-warren-preview";
const COOKIE: &str = "warren-preview";

/// A path without a link's signature, and that signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LinkedPath {
    /// With its query.
    pub clean: String,
    link: Option<String>,
}

impl LinkedPath {
    pub(super) fn of(uri: &Uri) -> Self {
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        let Some(query) = uri.query() else { return Self { clean: path.to_owned(), link: None } };
        let mut link = None;
        let mut rest = Vec::new();
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some((LINK_PARAMETER, value)) => drop(link.get_or_insert_with(|| value.to_owned())),
                _ => rest.push(pair),
            }
        }
        let clean = match (&link, rest.join("&")) {
            (Some(_), query) if query.is_empty() => path.to_owned(),
            (_, query) => format!("{path}?{query}"),
        };
        Self { clean, link }
    }
}

/// `host` is that of the request, as it was written.
pub(super) fn shown(parts: &Parts, host: &str, path: &LinkedPath, is_secure: bool) -> Shown {
    let text = |value: &HeaderValue| value.to_str().map(|text| text.trim().to_owned()).unwrap_or_default();
    let mut tokens = parts.headers.get_all(PREVIEW_TOKEN_HEADER).iter().map(text);
    let token = tokens.next().map(|token| if tokens.next().is_some() { String::new() } else { token });
    let mut authorizations = parts.headers.get_all(header::AUTHORIZATION).iter();
    let bearer = authorizations.next().filter(|_| authorizations.next().is_none()).and_then(bearer);
    let cookies = if counts_cookies(&parts.headers, host, is_secure) {
        let name = if is_secure { COOKIE_TLS } else { COOKIE };
        pairs(&parts.headers).filter_map(|pair| value_of(pair, name)).map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    Shown { token, bearer, cookies, link: path.link.clone() }
}

fn bearer(value: &HeaderValue) -> Option<String> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// Whether the request was made by a page of that host, or opens one.
fn counts_cookies(headers: &HeaderMap, host: &str, is_secure: bool) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    // A page that sends no referrer has its origin unsaid in its own forms as well; what may say so is the browser alone.
    let is_unsaid = |origin: &str| origin == "null" && text("sec-fetch-site") == Some("same-origin");
    if let Some(origin) = text("origin").filter(|origin| !is_unsaid(origin)) {
        let scheme = if is_secure { "https" } else { "http" };
        return origin.eq_ignore_ascii_case(&format!("{scheme}://{host}"));
    }
    match (text("sec-fetch-site"), text("sec-fetch-mode")) {
        (None | Some("same-origin" | "none"), _) => true,
        (Some(_), mode) => mode == Some("navigate"),
    }
}

/// The cookies of a request, one by one. Those of programs may have bytes beyond ASCII.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    values
        .flat_map(|bytes| bytes.split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a str> {
    let (found, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
    (found.trim() == name).then_some(value.trim())
}

fn name_of(pair: &[u8]) -> &[u8] {
    pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii()
}

fn is_ours(name: &[u8]) -> bool {
    name == COOKIE.as_bytes() || name == COOKIE_TLS.as_bytes()
}

/// Takes away what opens previews. The cookies of the program become one header, as HTTP/1.1 has them.
pub(super) fn remove_ours(headers: &mut HeaderMap, bearer_is_ours: bool) {
    headers.remove(PREVIEW_TOKEN_HEADER);
    if bearer_is_ours {
        headers.remove(header::AUTHORIZATION);
    }
    let has_cookies = headers.contains_key(header::COOKIE);
    let kept: Vec<&[u8]> = pairs(headers).filter(|pair| !is_ours(name_of(pair))).collect();
    let kept = (has_cookies && !kept.is_empty())
        .then(|| HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok())
        .flatten();
    headers.remove(header::COOKIE);
    if let Some(kept) = kept {
        headers.insert(header::COOKIE, kept);
    }
}

/// A cookie a program sets: for its own host alone, and never ours.
pub(super) fn own_cookie(value: &HeaderValue) -> Option<HeaderValue> {
    // Bytes beyond ASCII are fine in a value; what is looked at here is ASCII.
    let bytes = value.as_bytes();
    let mut parts = bytes.split(|byte| *byte == b';');
    let first = parts.next().unwrap_or_default();
    if is_ours(name_of(first)) {
        return None;
    }
    let mut own = first.to_vec();
    for attribute in parts {
        if !name_of(attribute).eq_ignore_ascii_case(b"domain") {
            own.push(b';');
            own.extend_from_slice(attribute);
        }
    }
    HeaderValue::from_bytes(&own).ok()
}

/// From a link to the plain address, with a cookie to come back with.
pub(super) fn redirect(path: &LinkedPath, admitted: &Admitted, is_secure: bool) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    // A path of the same host: with two slashes at its beginning it would name another.
    let local = format!("/{}", path.clean.trim_start_matches(['/', '\\']));
    let location = HeaderValue::try_from(local).unwrap_or(HeaderValue::from_static("/"));
    headers.insert(header::LOCATION, location);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Admitted::Link { cookie, expires } = admitted {
        let (name, secure) = if is_secure { (COOKIE_TLS, "; Secure") } else { (COOKIE, "") };
        let seconds = (expires - Timestamp::now().as_second()).max(0);
        let cookie = format!("{name}={cookie}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            headers.insert(header::SET_COOKIE, cookie);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn of(headers: &[(&str, &str)]) -> Shown {
        let parts = parts(headers);
        shown(&parts, "a.example:1", &LinkedPath::of(&parts.uri), false)
    }

    #[test]
    fn a_link_is_taken_out_of_the_query() {
        let taken = |uri: &str| {
            let path = LinkedPath::of(&uri.parse().unwrap());
            (path.clean, path.link)
        };
        let link = |text: &str| Some(text.to_owned());
        assert_eq!(taken("/a?b=1&c"), ("/a?b=1&c".into(), None));
        assert_eq!(taken("/a?_warren_share=x"), ("/a".into(), link("x")));
        assert_eq!(taken("/?b=1&_warren_share=x&c=%20&_warren_share=y"), ("/?b=1&c=%20".into(), link("x")));
        assert_eq!(taken("/a?"), ("/a?".into(), None));
    }

    #[test]
    fn cookies_of_programs_may_be_no_text() {
        let cookie = HeaderValue::from_bytes(b"a=1; warren-preview=GOOD; user=Jos\xc3\xa9").unwrap();
        let mut parts = parts(&[]);
        parts.headers.insert(header::COOKIE, cookie);
        let shown = shown(&parts, "a.example:1", &LinkedPath::of(&parts.uri), false);
        assert_eq!(shown.cookies, ["GOOD"]);
        remove_ours(&mut parts.headers, false);
        assert_eq!(parts.headers[header::COOKIE].as_bytes(), b"a=1; user=Jos\xc3\xa9");
    }

    #[test]
    fn an_origin_that_is_not_said_is_the_pages_own_when_the_browser_says_so() {
        let cookie = ("cookie", "warren-preview=GOOD");
        let counts =
            |site: &str| !of(&[cookie, ("origin", "null"), ("sec-fetch-site", site)]).cookies.is_empty();
        assert!(counts("same-origin"));
        for site in ["none", "same-site", "cross-site", ""] {
            assert!(!counts(site), "{site}");
        }
        assert!(of(&[cookie, ("origin", "null")]).cookies.is_empty());
    }

    #[test]
    fn a_redirect_stays_on_the_host() {
        for (uri, location) in [
            ("//evil.example/x?_warren_share=1", "/evil.example/x"),
            ("/\\evil.example?_warren_share=1", "/evil.example"),
            ("/a/b?_warren_share=1&q=2", "/a/b?q=2"),
        ] {
            // As a client sends it: a path, not a URL.
            let uri = Uri::builder().path_and_query(uri).build();
            let Ok(uri) = uri else { continue };
            let response = redirect(&LinkedPath::of(&uri), &Admitted::Open, false);
            assert_eq!(response.headers()[header::LOCATION], location);
        }
    }

    #[test]
    fn a_cookie_counts_for_pages_of_its_own_host() {
        let cookie = ("cookie", "x=1; warren-preview=v; y=2");
        assert_eq!(of(&[cookie]).cookies, ["v"]);
        assert_eq!(of(&[cookie, ("origin", "http://a.example:1")]).cookies, ["v"]);
        assert_eq!(
            of(&[cookie, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]).cookies,
            ["v"]
        );
        for other in ["null", "http://b.example:1", "https://a.example:1", "http://a.example", ""] {
            assert!(of(&[cookie, ("origin", other)]).cookies.is_empty(), "{other}");
        }
        for (site, mode) in [("same-site", "cors"), ("cross-site", "no-cors"), ("same-site", "websocket")] {
            let headers = [cookie, ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            assert!(of(&headers).cookies.is_empty(), "{site} {mode}");
        }
        let tls = parts(&[("cookie", "warren-preview=v; __Host-warren-preview=w")]);
        assert_eq!(shown(&tls, "a", &LinkedPath::of(&tls.uri), true).cookies, ["w"]);
    }

    #[test]
    fn tokens_are_where_they_belong() {
        assert_eq!(of(&[("x-oc-preview-token", " t ")]).token.as_deref(), Some("t"));
        assert_eq!(
            of(&[("x-oc-preview-token", "t"), ("x-oc-preview-token", "t")]).token.as_deref(),
            Some("")
        );
        assert_eq!(of(&[("authorization", "bearer t")]).bearer.as_deref(), Some("t"));
        assert_eq!(of(&[("authorization", "Basic t")]).bearer, None);
        assert_eq!(of(&[("authorization", "Bearer t"), ("authorization", "Bearer u")]).bearer, None);
    }

    #[test]
    fn a_program_sees_its_own_cookies_alone_and_sets_them_for_itself_alone() {
        let mut headers = parts(&[
            ("cookie", "a=1; warren-preview=v"),
            ("cookie", "__Host-warren-preview=w"),
            ("cookie", "b=2;c"),
            ("x-oc-preview-token", "t"),
            ("authorization", "Bearer own"),
        ])
        .headers;
        remove_ours(&mut headers, false);
        assert_eq!(headers[header::COOKIE], "a=1; b=2; c");
        assert_eq!(headers.get_all(header::COOKIE).iter().count(), 1);
        assert!(!headers.contains_key(PREVIEW_TOKEN_HEADER));
        assert!(headers.contains_key(header::AUTHORIZATION));
        let mut ours = parts(&[("cookie", "warren-preview=v"), ("authorization", "Bearer t")]).headers;
        remove_ours(&mut ours, true);
        assert!(ours.is_empty(), "{ours:?}");

        let set = |text: &str| own_cookie(&HeaderValue::from_str(text).unwrap());
        assert_eq!(set("a=1; Path=/; Domain=localhost; Secure").unwrap(), "a=1; Path=/; Secure");
        assert_eq!(set("a=1;DOMAIN =.example.com").unwrap(), "a=1");
        assert_eq!(set("domain=x; Path=/").unwrap(), "domain=x; Path=/");
        assert_eq!(set("warren-preview=x"), None);
        assert_eq!(set(" __Host-warren-preview =x; Path=/"), None);
    }
}
