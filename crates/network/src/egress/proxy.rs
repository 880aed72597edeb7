//! Requests of one connection of a sandbox, carried to their host over connections of our own.
//!
//! A client's connection has one towards the host, opened again when the host has closed it. Bodies stream both ways.
//! Policy and secrets are asked for at each request.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_util::sync::CancellationToken;
use warren_node_api::NetworkEventKind;

use super::Gateway;
use super::body::Body;
use super::connection::Destination;
use super::dial::UpstreamTls;
use super::form::{self, Target, Way};
use super::framing::{Ambiguous, Framed, MAX_HEAD};
use super::io::{Activity, Io, Watched};
use super::open::{Kind, Open};
use super::refusal::{NOT_ALLOWED, PRIVATE, Refusal};
use super::reply;
use super::request;
use super::secrets::HostSecrets;
use super::session::Session;
use super::upstream::{Outgoing, Upstream, ended};
use super::websocket;

/// Without a byte from or to the client a connection ends after this.
const IDLE: Duration = Duration::from_secs(5 * 60);
pub(crate) const MAX_HEADERS: usize = 256;
const MAX_STREAMS: u32 = 128;
/// Bytes that may be under way over HTTP/2, for one request and for all of a connection.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
pub(crate) const SEND_BUFFER: usize = 128 * 1024;

/// Where the requests of a connection go.
pub(crate) struct Site {
    /// The only host they may be for. None: each names its own.
    pub(crate) host: Option<String>,
    pub(crate) to: Destination,
    pub(crate) secure: bool,
}

pub(crate) struct Proxy {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    /// Ends everything that belongs to the connection.
    close: CancellationToken,
    site: Site,
    upstream: Upstream,
    /// Answered to the first request: why the host was not reached.
    failed: Mutex<Option<Refusal>>,
    /// What the connection becomes after its last request.
    after: Mutex<Option<After>>,
    ambiguous: Ambiguous,
}

pub(crate) type After = Pin<Box<dyn Future<Output = ()> + Send>>;

// === impl Proxy ===

impl Proxy {
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        session: Arc<Session>,
        close: CancellationToken,
        site: Site,
    ) -> Arc<Self> {
        let upstream =
            Upstream::new(gateway.clone(), session.clone(), close.clone(), site.to.clone(), site.secure);
        Arc::new(Self {
            gateway,
            session,
            close,
            site,
            upstream,
            failed: Mutex::default(),
            after: Mutex::default(),
            ambiguous: Ambiguous::default(),
        })
    }

    /// Serves a client inside TLS, with the host's connection that was opened for it or the reason why there is none.
    pub(crate) async fn carry_secure<S: Io>(
        self: Arc<Self>,
        stream: S,
        is_http_2: bool,
        upstream: Result<UpstreamTls, Refusal>,
    ) {
        self.upstream.speak(is_http_2);
        let host = self.site.host.as_deref().unwrap_or_default();
        let begun = match upstream {
            Ok(stream) => self.upstream.begin(host, stream).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = begun {
            *lock(&self.failed) = Some(refusal);
        }
        if is_http_2 { self.carry_http_2(stream).await } else { self.carry_http_1(stream, false).await }
    }

    pub(crate) async fn carry_plain<S: Io>(self: Arc<Self>, stream: S, proxied: bool) {
        self.carry_http_1(stream, proxied).await;
    }

    async fn carry_http_1<S: Io>(self: Arc<Self>, stream: S, proxied: bool) {
        let activity = Activity::new();
        let stream = Framed::new(Watched::new(stream, activity.clone()), self.ambiguous.clone());
        let way = match (proxied, self.site.secure) {
            (true, _) => Way::Proxied,
            (false, true) => Way::Tls,
            (false, false) => Way::Plain,
        };
        let service = service_fn(|request| self.clone().serve(request, way));
        let connection = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .preserve_header_case(true)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            _ = connection => {}
            () = activity.silent_for(IDLE) => return,
        }
        let after = lock(&self.after).take();
        if let Some(after) = after {
            after.await;
        }
    }

    async fn carry_http_2<S: Io>(self: Arc<Self>, stream: S) {
        let activity = Activity::new();
        let service = service_fn(|request| self.clone().serve(request, Way::Tls));
        let connection = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(Watched::new(stream, activity.clone())), service);
        tokio::select! {
            _ = connection => {}
            () = activity.silent_for(IDLE) => {}
        }
    }

    async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        way: Way,
    ) -> Result<Response<Body>, Infallible> {
        let version = request.version();
        let answer = self.close.run_until_cancelled(self.answer(request, way)).await;
        // Nobody reads this one: the connection is closed.
        let answer = answer.unwrap_or_else(|| Err(ended(self.site.host.as_deref().unwrap_or_default())));
        let mut response = answer.unwrap_or_else(|refusal| {
            let port = if self.site.to.port == 0 { 80 } else { self.site.to.port };
            self.session.note_refusal(&refusal, port);
            refusal.response()
        });
        *response.version_mut() = version;
        Ok(response)
    }

    async fn answer(&self, request: Request<Incoming>, way: Way) -> Result<Response<Body>, Refusal> {
        if request.method() == Method::CONNECT && way == Way::Proxied {
            return super::explicit::connect(self, request).await;
        }
        let target = self.target(&request, way)?;
        if let Some(refusal) = self.failed() {
            return Err(refusal);
        }
        let port = if self.site.to.port == 0 { target.port.unwrap_or(80) } else { self.site.to.port };
        self.may(&target.host, port, request.method(), request.uri().path())?;
        self.session.note_allowed(&target.host, port, Some(request.method()));
        let secrets = self.secrets(&target.host, &request)?;
        let mut request = request;
        let upgrade = request::wants_websocket(&request).then(|| hyper::upgrade::on(&mut request));
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let (parts, body) = request.into_parts();
        let host = target.host.clone();
        let outgoing = self.outgoing(target, port, parts, body, &secrets, upgrade.is_some()).await?;
        let reply = self.upstream.send(outgoing).await?;
        if reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = upgrade.ok_or_else(|| {
                Refusal::upstream(
                    StatusCode::BAD_GATEWAY,
                    &host,
                    "the host changed the protocol without being asked",
                )
            })?;
            let open = Open { host: Some(host), address: None, port, kind: Kind::Upgraded { path } };
            return Ok(self.upgraded(upgrade, reply, open, &secrets));
        }
        reply::seal(reply, &method, secrets.seal.as_ref())
            .map_err(|error| Refusal::upstream(StatusCode::BAD_GATEWAY, &host, error))
    }

    /// Why the host was not reached when the connection began. Said once, since the next request may try again, but
    /// for a connection that is not as it should be, or to a host that is not allowed.
    fn failed(&self) -> Option<Refusal> {
        let mut failed = lock(&self.failed);
        match failed.as_ref()?.rule {
            "form" | "allowlist" => failed.clone(),
            _ => failed.take(),
        }
    }

    /// Whom the request is for, when it is one that this connection may carry.
    fn target(&self, request: &Request<Incoming>, way: Way) -> Result<Target, Refusal> {
        let named = self.site.host.as_deref().unwrap_or_default();
        if self.ambiguous.is_set() {
            let error = "a request has a Content-Length or a Transfer-Encoding, not both";
            return Err(Refusal::form(named, error));
        }
        if request.method() == Method::CONNECT {
            let error = "CONNECT is not carried inside a connection to a host";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "form", named, error));
        }
        let target = form::target(request, way).map_err(|error| Refusal::form(named, error))?;
        let misdirected = |error| Refusal::new(StatusCode::MISDIRECTED_REQUEST, "form", &target.host, error);
        if let Some(host) = self.site.host.as_deref().filter(|host| *host != target.host) {
            return Err(misdirected(format!(
                "this connection is to {host}; the request names {}",
                target.host
            )));
        }
        let port = self.site.to.port;
        if let Some(other) = target.port.filter(|other| port != 0 && *other != port) {
            return Err(misdirected(format!(
                "this connection is to port {port}; the request names port {other}"
            )));
        }
        Ok(target)
    }

    fn may(&self, host: &str, port: u16, method: &Method, path: &str) -> Result<(), Refusal> {
        let policy = self.session.policy();
        if !policy.allows(host, port) {
            return Err(Refusal::not_allowed(host, port));
        }
        if !policy.allows_request(host, port, method.as_str(), path) {
            let error = format!("{NOT_ALLOWED}: the rules for {host} do not allow {method} on this path");
            return Err(Refusal::new(StatusCode::FORBIDDEN, "allowlist", host, error));
        }
        Ok(())
    }

    /// Those that are meant for the host. Over TLS only: without it nobody has proved to be the host.
    fn secrets(&self, host: &str, request: &Request<Incoming>) -> Result<Arc<HostSecrets>, Refusal> {
        if !self.site.secure {
            return Ok(Arc::default());
        }
        match self.session.secrets() {
            Some(secrets) => Ok(secrets.for_host(host)),
            None if self.session.waits_for_grant() && request::holds_token(request) => {
                let error = "the values of this sandbox's secrets are not here yet; try again in a moment";
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "secrets", host, error))
            }
            None => Ok(Arc::default()),
        }
    }

    async fn outgoing(
        &self,
        target: Target,
        port: u16,
        mut parts: Parts,
        body: Incoming,
        secrets: &HostSecrets,
        websocket: bool,
    ) -> Result<Outgoing, Refusal> {
        request::strip_hop_by_hop(&mut parts.headers);
        request::settle(&mut parts.headers);
        let mut used = std::collections::BTreeSet::new();
        request::substitute(&mut parts, secrets, &mut used)
            .map_err(|error| Refusal::form(&target.host, error))?;
        for name in &used {
            self.gateway.uses.note(self.session.id(), name, &target.host);
            let kind = NetworkEventKind::SecretUse { name: name.clone() };
            self.session.note_event(kind, &target.host, port);
        }
        if websocket {
            request::ask_for_websocket(&mut parts.headers, secrets.seal.is_none());
        }
        let body = match &secrets.body {
            Some(substitutes) => {
                let (uses, sandbox) = (self.gateway.uses.clone(), self.session.id().clone());
                let (host, session) = (target.host.clone(), self.session.clone());
                let note = move |name: &str| {
                    if used.insert(name.to_owned()) {
                        uses.note(&sandbox, name, &host);
                        let kind = NetworkEventKind::SecretUse { name: name.to_owned() };
                        session.note_event(kind, &host, port);
                    }
                };
                request::substitute_in_body(&mut parts, body, substitutes, note).await.map_err(|_| {
                    Refusal::form(&target.host, "the body of the request ended before its end")
                })?
            }
            None => request::pass(body),
        };
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Outgoing { target, port, path, request: Request::from_parts(parts, body) })
    }

    /// The answer that ends HTTP on this connection; both sides are joined once it is written.
    fn upgraded(
        &self,
        client: hyper::upgrade::OnUpgrade,
        mut reply: Response<Incoming>,
        open: Open,
        secrets: &HostSecrets,
    ) -> Response<Body> {
        let upstream = hyper::upgrade::on(&mut reply);
        let (seal, session) = (secrets.seal.clone(), self.session.clone());
        let (host, port) = (open.host.clone().unwrap_or_default(), open.port);
        let held = self.session.hold(open);
        self.then(Box::pin(async move {
            let carry = async {
                let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
                websocket::carry(client, upstream, seal, || {
                    session.note_blocked(&host, port, "a WebSocket message with the value of a secret");
                })
                .await;
            };
            let _ = held.close().run_until_cancelled(carry).await;
        }));
        let (mut parts, _) = reply.into_parts();
        request::strip_hop_by_hop(&mut parts.headers);
        if let Some(table) = &secrets.seal {
            super::body::replace_in_headers(&mut parts.headers, table);
        }
        request::ask_for_websocket(&mut parts.headers, true);
        parts.extensions.clear();
        Response::from_parts(parts, Body::default())
    }

    pub(crate) fn then(&self, after: After) {
        *lock(&self.after) = Some(after);
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Session ===

impl Session {
    pub(crate) fn note_refusal(&self, refusal: &Refusal, port: u16) {
        let reason = match refusal.rule {
            "allowlist" => NOT_ALLOWED,
            "reach" => PRIVATE,
            // What a host did wrong was not blocked.
            "upstream" => return,
            _ => &refusal.error,
        };
        self.note_blocked(&refusal.host, port, reason);
    }
}
