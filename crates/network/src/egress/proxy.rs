//! Requests of one connection of a sandbox, carried to their host over connections of our own.
//!
//! A client's connection has one towards the host, opened again when the host has closed it. Bodies stream both ways.
//! Policy and secrets are asked for at each request.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
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
use super::body::{Body, Bound};
use super::budget::Budget;
use super::connection::Destination;
use super::dial::UpstreamTls;
use super::form::{self, Target, Way};
use super::framing::{Ambiguous, Framed, MAX_HEAD};
use super::io::{Activity, Io, Watched};
use super::live::{Live, Sought};
use super::open::{Held, Kind, Open};
use super::refusal::{NOT_ALLOWED, Refusal, Shown};
use super::reply;
use super::request;
use super::secrets::HostSecrets;
use super::session::Session;
use super::upstream::{Outgoing, Upstream, ended};
use super::websocket;

/// Without a byte from or to the client a connection ends after this.
const IDLE: Duration = Duration::from_secs(5 * 60);
/// A request waits so long for the values of its sandbox's secrets, which come right after the server has started.
const GRANT_PATIENCE: Duration = Duration::from_secs(2);
pub(crate) const MAX_HEADERS: usize = 256;
/// Bytes that may wait on one HTTP/2 connection, and requests under way on it. A sandbox with many has less on each.
#[derive(Clone, Copy)]
pub(crate) struct Windows {
    pub(crate) stream: u32,
    pub(crate) connection: u32,
    pub(crate) send: usize,
    pub(crate) streams: u32,
}

impl Windows {
    const FULL: Self =
        Self { stream: 1024 * 1024, connection: 2 * 1024 * 1024, send: 128 * 1024, streams: 128 };
    /// What the protocol has anyway. Each stream may have as much to send as is said here, to a client that does not read.
    const SMALL: Self = Self { stream: 65_535, connection: 65_535, send: 16 * 1024, streams: 16 };

    pub(crate) fn of(session: &Session) -> Self {
        if session.is_crowded() { Self::SMALL } else { Self::FULL }
    }
}

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
    /// Why the host was not reached; see [`Self::failed`] for who is told.
    failed: Mutex<Option<Refusal>>,
    /// No request is taken after those that are under way.
    last: CancellationToken,
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
            last: CancellationToken::new(),
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
        let mut connection = pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            () = self.last.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(IDLE, connection).await;
            }
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
        let windows = Windows::of(&self.session);
        let connection = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_concurrent_streams(windows.streams)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_send_buf_size(windows.send)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(Watched::new(stream, activity.clone())), service);
        let mut connection = pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            () = self.last.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(IDLE, connection).await;
            }
            () = activity.silent_for(IDLE) => {}
        }
    }

    async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        way: Way,
    ) -> Result<Response<Body>, Infallible> {
        let (version, shown) = (request.version(), Shown::to(&request));
        let answer = self.close.run_until_cancelled(self.answer(request, way)).await;
        // Nobody reads this one: the connection is closed.
        let answer = answer.unwrap_or_else(|| Err(ended(self.site.host.as_deref().unwrap_or_default())));
        let mut response = answer.unwrap_or_else(|refusal| {
            let port = if self.site.to.port == 0 { 80 } else { self.site.to.port };
            self.session.note_refusal(&refusal, port);
            refusal.response(shown)
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
        let secrets = self.secrets(&target.host).await?;
        let mut request = request;
        let upgrade = request::wants_websocket(&request).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let (method, path, host) = (parts.method.clone(), parts.uri.path().to_owned(), target.host.clone());
        let kind = Kind::Request { method: method.clone(), path: path.clone(), unread: false };
        let held = Arc::new(self.session.hold(Open { host: Some(host.clone()), address: None, port, kind }));
        let carried = async {
            let mut outgoing = self.outgoing(target, port, parts, body, &secrets, upgrade.is_some()).await?;
            outgoing.request = outgoing.request.map(|body| Bound::body(body, &held));
            self.upstream.send(outgoing).await
        };
        let reply = held.close().run_until_cancelled(carried).await.unwrap_or_else(|| {
            self.may(&host, port, &method, &path)?;
            Err(ended(&host))
        })?;
        let seal = self.seal(&host, &held);
        if reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = upgrade.ok_or_else(|| {
                Refusal::upstream(
                    StatusCode::BAD_GATEWAY,
                    &host,
                    "the host changed the protocol without being asked",
                )
            })?;
            return Ok(self.upgraded(upgrade, reply, (host, port), held, seal));
        }
        let reply = reply::seal(reply, &method, seal)
            .map_err(|error| Refusal::upstream(StatusCode::BAD_GATEWAY, &host, error))?;
        Ok(reply.map(|body| Bound::body(body, &held)))
    }

    /// What is looked for in what the host says. If that is nothing now, the request ends when it becomes something.
    fn seal(&self, host: &str, held: &Held) -> Option<Live> {
        if !self.site.secure {
            return None;
        }
        let mut live = Live::new(self.session.clone(), host.to_owned(), Sought::Values);
        if live.current().is_some() {
            return Some(live);
        }
        self.session.decide(held, |open| {
            if let Kind::Request { unread, .. } = &mut open.kind {
                *unread = true;
            }
        });
        None
    }

    /// Why the host was not reached when the connection began. Said once, since the next request may try again, but
    /// for a connection that is not as it should be, to a host that is not allowed, or in a tunnel that was refused.
    fn failed(&self) -> Option<Refusal> {
        let mut failed = lock(&self.failed);
        let refusal = failed.as_ref()?;
        if refusal.of_tunnel || refusal.rule == "allowlist" {
            // It is of the moment when the connection began; what comes next may be allowed.
            self.last.cancel();
        }
        if refusal.of_tunnel || matches!(refusal.rule, "form" | "allowlist") {
            return failed.clone();
        }
        failed.take()
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

    /// Those that are meant for the host. Over TLS only: without it nobody has proved to be the host. As long as they are not
    /// known nothing goes there: what it answers with could not be read.
    async fn secrets(&self, host: &str) -> Result<Arc<HostSecrets>, Refusal> {
        if !self.site.secure {
            return Ok(Arc::default());
        }
        if !self.session.is_granted_within(GRANT_PATIENCE).await {
            let error = "the values of this sandbox's secrets are not here yet; try again in a moment";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "secrets", host, error));
        }
        Ok(self.session.secrets().map(|secrets| secrets.for_host(host)).unwrap_or_default())
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
        let body = if secrets.body.is_some() {
            let (uses, sandbox) = (self.gateway.uses.clone(), self.session.id().clone());
            let (host, session) = (target.host.clone(), self.session.clone());
            let note = move |name: &str| {
                if used.insert(name.to_owned()) {
                    uses.note(&sandbox, name, &host);
                    let kind = NetworkEventKind::SecretUse { name: name.to_owned() };
                    session.note_event(kind, &host, port);
                }
            };
            let live = Live::new(self.session.clone(), target.host.clone(), Sought::Tokens);
            let budget = Budget::new(self.gateway.bodies.clone(), self.session.bodies.clone());
            request::substitute_in_body(&mut parts, body, live, &budget, Box::new(note))
                .await
                .map_err(|_| Refusal::form(&target.host, "the body of the request ended before its end"))?
        } else {
            request::pass(body)
        };
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Outgoing { target, port, path, request: Request::from_parts(parts, body) })
    }

    /// The answer that ends HTTP on this connection; both sides are joined once it is written.
    fn upgraded(
        &self,
        client: hyper::upgrade::OnUpgrade,
        mut reply: Response<Incoming>,
        (host, port): (String, u16),
        held: Arc<Held>,
        mut seal: Option<Live>,
    ) -> Response<Body> {
        let upstream = hyper::upgrade::on(&mut reply);
        let substitutes = seal.as_mut().and_then(Live::current);
        let session = self.session.clone();
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
        if let Some(substitutes) = substitutes {
            super::body::replace_in_headers(&mut parts.headers, &substitutes);
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
        if refusal.of_tunnel {
            return;
        }
        // What a host did wrong was not blocked.
        if refusal.rule != "upstream" {
            let reason = refusal.reason().unwrap_or(&refusal.error);
            self.note_blocked(&refusal.host, port, reason);
        }
    }
}
