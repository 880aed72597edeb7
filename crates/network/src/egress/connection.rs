//! One connection of a sandbox: what it is, and what may become of it.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::debug;
use warren_types::{EgressMode, EgressPolicy};

use super::Gateway;
use super::client_hello::{self, ClientHello, Parsed};
use super::dial::UpstreamTls;
use super::io::{Io, Peeked, tunnel};
use super::open::{Held, Kind, Open};
use super::proxy::{Proxy, Site};
use super::refusal::{NOT_ALLOWED, Refusal};
use super::session::Session;
use super::sniff::{Sniffed, sniff};
use super::tls::{HTTP_1, HTTP_2, Protocols};

/// For what a client says first, once it has begun to; and for all of it where it has to speak first.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// A client that has said nothing by then waits for the server to speak.
const SILENCE: Duration = Duration::from_millis(300);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most that is looked at before it is decided.
const MAX_SEEN: usize = client_hello::MAX_BYTES;
const WEB_PORTS: [u16; 2] = [80, 443];

/// Where a connection wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The name that a client of the explicit proxy gave.
    pub host: Option<String>,
    pub addresses: Vec<Ipv4Addr>,
    pub port: u16,
}

impl Destination {
    #[must_use]
    pub fn address(address: Ipv4Addr, port: u16) -> Self {
        Self { host: None, addresses: vec![address], port }
    }

    /// In words: the name, or the address.
    fn shown(&self) -> String {
        let address = || self.addresses.first().map(ToString::to_string);
        self.host.clone().or_else(address).unwrap_or_default()
    }

    fn is_web(&self) -> bool {
        WEB_PORTS.contains(&self.port)
    }

    /// An address that stands for the host: the one place this connection can go to without a name.
    fn literal(&self) -> Option<String> {
        self.host.clone().or_else(|| self.addresses.first().map(ToString::to_string))
    }
}

/// What a client says first.
enum First {
    Tls(ClientHello),
    Http(Sniffed),
    /// Something else, or nothing for a while.
    Other,
    /// It begins like TLS and is not.
    Malformed(&'static str),
    Gone,
}

/// A connection, with what everything that handles it needs.
struct Connection<'a> {
    gateway: &'a Arc<Gateway>,
    session: &'a Arc<Session>,
    policy: Arc<EgressPolicy>,
    held: &'a Held,
    to: Destination,
}

impl Gateway {
    /// Carries one connection of a sandbox until it ends, or until its session closes it.
    pub async fn handle<S: Io>(self: Arc<Self>, stream: S, to: Destination, session: Arc<Session>) {
        let places = (self.places.clone().try_acquire_owned(), session.places.clone().try_acquire_owned());
        let (Ok(_gateway), Ok(_session)) = places else {
            session.note_blocked(&to.shown(), to.port, "too many connections");
            return;
        };
        let held = session.hold(Open {
            host: to.host.clone(),
            address: to.addresses.first().copied(),
            port: to.port,
            kind: Kind::Undecided,
        });
        let policy = session.policy();
        let connection = Connection { gateway: &self, session: &session, policy, held: &held, to };
        let _ = held.close().run_until_cancelled(connection.carry(stream)).await;
    }
}

impl Gateway {
    /// The same, of a connection that comes out of one: boxed, or its type would contain itself.
    pub(crate) fn handle_inner<S: Io>(
        self: Arc<Self>,
        stream: S,
        to: Destination,
        session: Arc<Session>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.handle(stream, to, session))
    }
}

impl Connection<'_> {
    async fn carry<S: Io>(self, stream: S) {
        let mut stream = Peeked::new(stream);
        let first = first(&mut stream, self.to.is_web()).await;
        match self.policy.mode {
            EgressMode::None => self.block(&self.to.shown(), "this sandbox may reach nothing"),
            EgressMode::Open => self.open(stream, first).await,
            EgressMode::Allowlist => self.allowlist(stream, first).await,
        }
    }

    async fn open<S: Io>(&self, stream: Peeked<S>, first: First) {
        match first {
            First::Gone => {}
            First::Tls(hello) => {
                // A client of the proxy may leave the name out.
                let host = hello.server_name.clone().or_else(|| self.to.host.clone());
                match host {
                    Some(host) if hello.may_speak_http() && self.session.has_secrets_for(&host) => {
                        self.inspect(stream, host, &hello).await;
                    }
                    host => self.raw(stream, host, true).await,
                }
            }
            _ => self.raw(stream, self.to.host.clone(), false).await,
        }
    }

    async fn allowlist<S: Io>(&self, stream: Peeked<S>, first: First) {
        match first {
            First::Gone => {}
            First::Tls(hello) => self.allowlist_tls(stream, hello).await,
            First::Malformed(why) => self.block(&self.to.shown(), why),
            First::Http(Sniffed::Http2) => self.block(&self.to.shown(), "HTTP/2 without TLS"),
            First::Http(_) => self.plain(stream).await,
            First::Other => {
                let host = self.to.host.as_deref();
                let address = self.to.addresses.first().copied();
                if self.session.allows_raw(&self.policy, host, address, self.to.port) {
                    self.raw(stream, self.to.host.clone(), false).await;
                } else if self.to.is_web() {
                    self.block(&self.to.shown(), "neither HTTP nor TLS");
                } else {
                    self.block(&self.to.shown(), NOT_ALLOWED);
                }
            }
        }
    }

    async fn allowlist_tls<S: Io>(&self, stream: Peeked<S>, hello: ClientHello) {
        let port = self.to.port;
        let literal = || self.to.literal().filter(|literal| self.policy.allows(literal, port));
        let Some(host) = hello.server_name.clone().or_else(literal) else {
            return self.block(&self.to.shown(), "TLS without a server name");
        };
        if hello.may_speak_http() || !self.policy.allows(&host, port) {
            self.inspect(stream, host, &hello).await;
        } else if self.session.allows_raw(&self.policy, Some(&host), None, port) {
            self.raw(stream, Some(host), true).await;
        } else {
            self.block(&host, "only HTTP is allowed there");
        }
    }

    /// Ends TLS here and begins it anew towards the host.
    async fn inspect<S: Io>(&self, stream: Peeked<S>, host: String, hello: &ClientHello) {
        let refusal = self.refusal(&host);
        self.decide(Some(&host), if refusal.is_some() { Kind::Refused } else { Kind::Inspected });
        let upstream = match refusal {
            Some(refusal) => Err(refusal),
            None => {
                let protocols = Protocols::of(hello);
                self.gateway.dial_tls(self.session, &host, &self.to, protocols).await
            }
        };
        let protocols: &[&[u8]] = match &upstream {
            Ok(upstream) if speaks_http_2(upstream) => &[HTTP_2],
            Ok(_) => &[HTTP_1],
            Err(_) => &[HTTP_2, HTTP_1],
        };
        let accepted =
            tokio::time::timeout(HANDSHAKE, self.gateway.tls.accept(stream, &host, protocols)).await;
        let Ok(Ok(stream)) = accepted else {
            // Otherwise it is noted with the request that it answers.
            if let Err(refusal) = &upstream {
                self.session.note_refusal(refusal, self.to.port);
            }
            return debug!(sandbox = %self.session.id(), host, "a client did not go on with TLS");
        };
        let is_http_2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
        let mut stream = Peeked::new(stream);
        let upstream = match upstream {
            // It has not said that it speaks HTTP; whatever else it may speak, a rule can let through.
            Ok(upstream) if hello.protocols.is_empty() && self.is_other(&mut stream, &host).await => {
                self.decide(Some(&host), Kind::Raw { tls: false });
                self.session.note_allowed(&host, self.to.port, None);
                return tunnel(stream, upstream).await;
            }
            upstream => upstream,
        };
        let site = Site { host: Some(host), to: self.to.clone(), secure: true };
        self.proxy(site).carry_secure(stream, is_http_2, upstream).await;
    }

    /// Whether what comes inside TLS is not HTTP, and may be anything.
    async fn is_other<S: Io>(&self, stream: &mut Peeked<S>, host: &str) -> bool {
        let may = self.policy.mode == EgressMode::Open
            || self.session.allows_raw(&self.policy, Some(host), None, self.to.port);
        may && matches!(first(stream, self.to.port == 443).await, First::Other)
    }

    /// HTTP without TLS: each request names its host. No secret is put into it.
    async fn plain<S: Io>(&self, stream: Peeked<S>) {
        self.decide(None, Kind::Inspected);
        let site = Site { host: self.to.host.clone(), to: self.to.clone(), secure: false };
        self.proxy(site).carry_plain(stream, false).await;
    }

    /// Nobody reads it from here on.
    async fn raw<S: Io>(&self, stream: Peeked<S>, host: Option<String>, tls: bool) {
        self.decide(host.as_deref(), Kind::Raw { tls });
        self.session.note_allowed(host.as_deref().unwrap_or(&self.to.shown()), self.to.port, None);
        // Under an allowlist a name decides where it goes. Otherwise it goes where it wants.
        let upstream = match (&host, self.policy.mode) {
            (Some(host), EgressMode::Allowlist) => self.gateway.dial(self.session, host, &self.to).await,
            _ => self.gateway.connect(&self.to.shown(), &self.to.addresses, self.to.port).await,
        };
        match upstream {
            Ok(upstream) => tunnel(stream, upstream).await,
            Err(refusal) => self.session.note_refusal(&refusal, self.to.port),
        }
    }

    fn proxy(&self, site: Site) -> Arc<Proxy> {
        Proxy::new(self.gateway.clone(), self.session.clone(), self.held.close().clone(), site)
    }

    /// Why that host may not be spoken to over this connection, if so.
    fn refusal(&self, host: &str) -> Option<Refusal> {
        if !self.policy.allows(host, self.to.port) {
            return Some(Refusal::not_allowed(host, self.to.port));
        }
        let other = self.to.host.as_deref().filter(|claimed| *claimed != host)?;
        let error = format!("the tunnel was asked for to {other}, and the TLS inside names {host}");
        Some(Refusal::new(http::StatusCode::MISDIRECTED_REQUEST, "form", host, error))
    }

    fn decide(&self, host: Option<&str>, kind: Kind) {
        self.session.decide(self.held, |open| {
            open.host = host.map(str::to_owned);
            open.kind = kind;
        });
    }

    fn block(&self, host: &str, reason: &str) {
        self.session.note_blocked(host, self.to.port, reason);
    }
}

fn speaks_http_2(upstream: &UpstreamTls) -> bool {
    upstream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}

/// Looks at what the client says first. `patient`: it has to say something.
async fn first<S: Io>(stream: &mut Peeked<S>, patient: bool) -> First {
    let begin = Instant::now() + if patient { FIRST_BYTES } else { SILENCE };
    let end = Instant::now() + FIRST_BYTES;
    loop {
        let deadline = if stream.seen().is_empty() { begin } else { end };
        match timeout_at(deadline, stream.look()).await {
            // A client that only waits for the end still may get what the server says.
            Ok(Ok(0)) if stream.seen().is_empty() => return First::Gone,
            Ok(Err(_)) => return First::Gone,
            Err(_) | Ok(Ok(0)) => return First::Other,
            Ok(Ok(_)) => {}
        }
        if let Some(first) = judge(stream.seen()) {
            return first;
        }
    }
}

/// None while it cannot be told.
fn judge(seen: &[u8]) -> Option<First> {
    if seen.first() == Some(&22) && seen.get(1).is_none_or(|major| *major == 3) {
        return match client_hello::parse(seen) {
            Parsed::Complete(hello) => Some(First::Tls(hello)),
            Parsed::Malformed(why) => Some(First::Malformed(why)),
            Parsed::Partial => None,
        };
    }
    match sniff(seen) {
        Sniffed::Partial if seen.len() < MAX_SEEN => None,
        Sniffed::Partial | Sniffed::Other => Some(First::Other),
        http => Some(First::Http(http)),
    }
}
