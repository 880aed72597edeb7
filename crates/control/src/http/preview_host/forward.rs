//! Passing a request on to a program, and its answer back. Bodies stream both ways; nothing is held here.
//!
//! The program sees the host the client asked for, and in `X-Forwarded-…` who asked and how. Of its answer whatever would
//! concern another connection or another host is left out: hop-by-hop fields, `Access-Control-…` (set for all previews alike),
//! `Alt-Svc`, the domain of its cookies.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::ConnectInfo;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use warren_types::{Error, ErrorKind, SandboxState};

use super::Refused;
use super::credentials::own_cookie;
use super::host::Target;
use crate::app::App;
use crate::app::previews::open::OpenPreview;
use crate::app::previews::port::{NoAnswer, is_nothing_listening};
use crate::listen::Peer;

const WEBSOCKET: &str = "websocket";
/// Of one connection only.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
/// A connection that was kept and has ended shows it this soon. What breaks off later may have been ended together with its
/// sandbox, which another try would wake.
const STALE: Duration = Duration::from_millis(100);
/// A program that thinks sends nothing, and only what is sent counts as use of its sandbox: meanwhile it is said this often
/// that somebody waits.
const STILL_ASKED: Duration = Duration::from_secs(1);
/// Of a tunnel in either direction.
const TUNNEL_BUFFER: usize = 32 * 1024;

/// What a client wants of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Exchange,
    /// A WebSocket, by an upgrade of HTTP/1.1.
    Upgrade,
    /// A WebSocket in a stream of HTTP/2 (RFC 8441).
    Stream,
}

/// How a request was let in.
pub(super) struct Entry {
    /// Generation of the sandbox that it was let in to.
    pub(super) seen: u64,
    /// How the client reaches this server.
    pub(super) base: String,
    pub(super) open: Arc<OpenPreview>,
}

/// `path` is what stands in the program's request line.
pub(super) async fn forward(
    app: &Arc<App>,
    target: &Target,
    entry: Entry,
    path: &str,
    mut parts: Parts,
    body: Body,
) -> Result<Response, Refused> {
    let Entry { seen, base, open } = entry;
    let wish = Wish::of(&parts)?;
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let headers = request_headers(&parts, target, &base, wish);
    let method = if wish == Wish::Stream { Method::GET } else { parts.method.clone() };
    let broken = Arc::new(AtomicBool::new(false));
    let body = if wish == Wish::Exchange { watched(body, &broken) } else { Body::empty() };

    let repeatable = matches!(method, Method::GET | Method::HEAD) && body.is_end_stream();
    let begun = Instant::now();
    let mut answer = send(app, target, path, request(&method, &headers, body)).await;
    // A connection that was kept may have been ended by the program at that moment.
    let stale = matches!(answer, Err(NoAnswer::BrokeOff(_))) && begun.elapsed() < STALE;
    if repeatable && answer.is_err() && (stale || has_slept(app, target, seen).await) {
        answer = send(app, target, path, request(&method, &headers, Body::empty())).await;
    }
    let answer = answer.map_err(|none| match none {
        NoAnswer::BrokeOff(_) if broken.load(Ordering::Relaxed) => {
            Refused::Error(Error::invalid("the body broke off before its end"))
        }
        NoAnswer::Unreachable(error) if is_nothing_listening(&error) => Refused::NothingListens,
        NoAnswer::Unreachable(error) if error.kind == ErrorKind::Gone => Refused::Error(error),
        NoAnswer::Unreachable(error) => Refused::Error(Error {
            message: format!("sandbox {}: upstream unavailable: {}", target.id, error.message),
            ..error
        }),
        NoAnswer::BrokeOff(reason) => Refused::BrokeOff(reason),
    })?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(app, answer, wish, upgrade, open);
    }
    let (mut head, body) = answer.into_parts();
    clean_answer(&mut head.headers);
    let mut response = Response::new(open.bind(Body::new(body)));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(response)
}

/// Says when it breaks off: then the program is not to blame.
fn watched(body: Body, broken: &Arc<AtomicBool>) -> Body {
    let broken = Arc::clone(broken);
    Body::new(body.map_err(move |error| {
        broken.store(true, Ordering::Relaxed);
        error
    }))
}

async fn send(
    app: &App,
    target: &Target,
    path: &str,
    request: Request<Body>,
) -> Result<http::Response<Incoming>, NoAnswer> {
    tokio::select! {
        answer = app.ports.request(&target.id, target.port, path, request) => answer,
        never = say_somebody_waits(app, target) => match never {},
    }
}

/// Whether the sandbox has hibernated since it was seen: with the request, which the next try wakes it for.
async fn has_slept(app: &App, target: &Target, seen: u64) -> bool {
    let report = app.node.get_sandbox(&target.id).await;
    report.is_ok_and(|report| report.state == SandboxState::Hibernated || report.generation != seen)
}

async fn say_somebody_waits(app: &App, target: &Target) -> Infallible {
    loop {
        tokio::time::sleep(STILL_ASKED).await;
        app.keep_awake(&target.id).await;
    }
}

fn request(method: &Method, headers: &HeaderMap, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.headers_mut() = headers.clone();
    request
}

fn request_headers(parts: &Parts, target: &Target, base: &str, wish: Wish) -> HeaderMap {
    let mut headers = parts.headers.clone();
    remove_hop_by_hop(&mut headers);
    // Answered by this server, which asks for the body when the program's connection takes it.
    headers.remove(header::EXPECT);
    headers.remove(HTTP2_SETTINGS);
    if let Ok(host) = HeaderValue::from_str(&target.host) {
        headers.insert(header::HOST, host.clone());
        headers.insert(FORWARDED_HOST, host);
    }
    if let Some(peer) = parts.extensions.get::<ConnectInfo<Peer>>() {
        let mut addresses: Vec<String> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        addresses.push(peer.0.address.ip().to_canonical().to_string());
        if let Ok(addresses) = HeaderValue::try_from(addresses.join(", ")) {
            headers.insert(FORWARDED_FOR, addresses);
        }
    }
    let scheme = if base.starts_with("https://") { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if wish != Wish::Exchange {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    }
    if wish == Wish::Stream {
        // HTTP/2 does without these; the program's HTTP/1.1 does not.
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).expect("base64 makes a header"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    headers
}

/// Joins a client and a program that speak WebSocket from here on.
fn switch(
    app: &App,
    answer: http::Response<Incoming>,
    wish: Wish,
    client: Option<OnUpgrade>,
    open: Arc<OpenPreview>,
) -> Result<Response, Refused> {
    let (mut head, _) = answer.into_parts();
    let program = head.extensions.remove::<OnUpgrade>();
    let switched = has_token(&head.headers, &header::UPGRADE, WEBSOCKET);
    let (Some(client), Some(program), true) = (client, program, switched && wish != Wish::Exchange) else {
        return Err(Refused::BrokeOff("it switches to a protocol that was not asked for".to_owned()));
    };
    let stopping = app.shutdown.clone();
    app.tasks.spawn(async move {
        let tunnel = async {
            let (client, program) = tokio::try_join!(client, program).map_err(std::io::Error::other)?;
            let (mut client, mut program) = (TokioIo::new(client), TokioIo::new(program));
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut program, TUNNEL_BUFFER, TUNNEL_BUFFER)
                .await
        };
        tokio::select! {
            ended = tunnel => tracing::debug!(?ended, "a tunnel to a program ends"),
            () = open.ended() => tracing::debug!("what a tunnel to a program was opened with is no longer good"),
            () = stopping.cancelled() => {}
        }
    });
    clean_answer(&mut head.headers);
    let mut response = Response::new(Body::empty());
    if wish == Wish::Stream {
        head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        head.headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    }
    head.headers.remove(header::CONTENT_LENGTH);
    *response.headers_mut() = head.headers;
    Ok(response)
}

fn clean_answer(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.remove(ALT_SVC);
    // It would clear what other previews have set as well.
    headers.remove(CLEAR_SITE_DATA);
    let cross_origin: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in cross_origin {
        headers.remove(name);
    }
    let cookies: Vec<HeaderValue> =
        headers.get_all(header::SET_COOKIE).iter().filter_map(own_cookie).collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// Removes what concerns one connection only, and what `Connection` says does.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

// === impl Wish ===

impl Wish {
    fn of(parts: &Parts) -> Result<Self, Error> {
        if parts.method == Method::CONNECT {
            let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
            return if protocol == Some(WEBSOCKET) {
                Ok(Self::Stream)
            } else {
                Err(Error::new(
                    ErrorKind::Unsupported,
                    "a preview is not a proxy: CONNECT opens WebSockets only",
                ))
            };
        }
        let upgrades = parts.method == Method::GET
            && parts.version == Version::HTTP_11
            && has_token(&parts.headers, &header::CONNECTION, "upgrade")
            && has_token(&parts.headers, &header::UPGRADE, WEBSOCKET);
        Ok(if upgrades { Self::Upgrade } else { Self::Exchange })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn an_answer_is_for_its_own_connection_and_host() {
        let mut headers = map(&[
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("alt-svc", "h3=\"evil.example:443\""),
            ("access-control-allow-origin", "https://x"),
            ("access-control-allow-credentials", "true"),
            ("set-cookie", "a=1; Domain=localhost"),
            ("set-cookie", "warren-preview=x"),
            ("set-cookie", "b=2; Path=/"),
            ("content-type", "text/plain"),
        ]);
        clean_answer(&mut headers);
        let mut left: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["content-type: text/plain", "set-cookie: a=1", "set-cookie: b=2; Path=/"]);
    }

    #[test]
    fn a_request_says_who_asked_and_for_which_host() {
        let mut request = Request::builder()
            .uri("/")
            .header("connection", "x-forwarded-for, upgrade")
            .header("upgrade", "h2c")
            .header("te", "trailers")
            .header("expect", "100-continue")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-for", "9.9.9.9")
            .body(())
            .unwrap();
        let peer = Peer { address: "[::ffff:1.2.3.4]:5".parse().unwrap(), tls: false };
        request.extensions_mut().insert(ConnectInfo(peer));
        let (mut parts, ()) = request.into_parts();
        let target =
            Target { id: "sb-0123abcd".parse().unwrap(), port: 1, domain: None, host: "A.example:7".into() };
        let headers = request_headers(&parts, &target, "http://x", Wish::Exchange);
        assert_eq!(headers[FORWARDED_FOR], "1.2.3.4", "a field that is named as hop-by-hop is not passed on");
        assert_eq!(headers[FORWARDED_PROTO], "http");
        assert_eq!(
            (&headers[header::HOST], &headers[FORWARDED_HOST]),
            (&"A.example:7".parse().unwrap(), &"A.example:7".parse().unwrap())
        );
        assert_eq!(headers.len(), 4, "{headers:?}");
        parts.headers.remove(header::CONNECTION);
        let headers = request_headers(&parts, &target, "https://x", Wish::Upgrade);
        assert_eq!(headers[FORWARDED_FOR], "9.9.9.9, 1.2.3.4");
        assert_eq!(headers[FORWARDED_PROTO], "https");
        assert_eq!(headers[header::UPGRADE], "websocket");
    }
}
