//! One connection of a sandbox: what it is, and what may become of it.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tracing::debug;
use warren_types::{EgressMode, EgressPolicy};

use super::Gateway;
use super::client_hello::ClientHello;
use super::dial::UpstreamTls;
use super::first::{FIRST_BYTES, First, SILENCE, first, first_of_both};
use super::io::{Io, Peeked, tunnel};
use super::meter::Metered;
use super::open::{Held, Kind, Open};
use super::proxy::{Proxy, Site};
use super::refusal::{NOT_ALLOWED, Refusal};
use super::session::Session;
use super::sniff::Sniffed;
use super::tls::{HTTP_1, HTTP_2, Protocols};

const HANDSHAKE: Duration = Duration::from_secs(10);
pub(crate) const WEB_PORTS: [u16; 2] = [80, 443];

/// A client that was refused is told so after this, unless it speaks before.
const REFUSED_SILENCE: Duration = Duration::from_secs(3);

const UNFINISHED: &str = "a request or a client hello that was begun and not ended";

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
        let Some(_place) = self.place(&session) else {
            session.note_blocked(&to.shown(), to.port, "too many connections");
            return;
        };
        let stream = Metered::new(stream, session.meter.clone());
        self.carry(stream, to, session).await;
    }

    async fn carry<S: Io>(self: Arc<Self>, stream: S, to: Destination, session: Arc<Session>) {
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
    /// The same, of a connection that comes out of one and has its place and its meter: boxed, or its type would contain
    /// itself.
    pub(crate) fn handle_inner<S: Io>(
        self: Arc<Self>,
        stream: S,
        to: Destination,
        session: Arc<Session>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.carry(stream, to, session))
    }

    /// A tunnel to where the sandbox may not go: its client is told so in what it speaks, inside TLS if it begins that.
    pub(crate) fn refuse_inner<S: Io>(
        self: Arc<Self>,
        stream: S,
        to: Destination,
        session: Arc<Session>,
        refusal: Refusal,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let (host, port) = (to.host.clone(), to.port);
            let held = session.hold(Open { host, address: None, port, kind: Kind::Refused });
            let policy = session.policy();
            let connection = Connection { gateway: &self, session: &session, policy, held: &held, to };
            let _ = held.close().run_until_cancelled(connection.refuse(stream, refusal)).await;
        })
    }
}

impl Connection<'_> {
    async fn carry<S: Io>(mut self, stream: S) {
        let mut stream = Peeked::new(stream);
        let patience = if self.to.is_web() || !self.may_be_raw() { FIRST_BYTES } else { SILENCE };
        let mut said = first(&mut stream, patience).await;
        let mut server = None;
        if matches!(said, First::Silent) && self.may_be_raw() {
            match self.dial_raw(self.to.host.as_deref()).await {
                Ok(mut joined) => {
                    said = first_of_both(&mut stream, &mut joined).await;
                    server = Some(joined);
                }
                Err(refusal) => return self.session.note_refusal(&refusal, self.to.port),
            }
            self.policy = self.session.policy();
        }
        match self.policy.mode {
            EgressMode::None => self.block(&self.to.shown(), "this sandbox may reach nothing"),
            EgressMode::Open => self.open(stream, said, server).await,
            EgressMode::Allowlist => self.allowlist(stream, said, server).await,
        }
    }

    /// `server`: the connection of a client that was silent.
    async fn open<S: Io>(&self, stream: Peeked<S>, first: First, server: Option<TcpStream>) {
        match first {
            First::Gone => {}
            First::Tls(hello) => {
                // A client of the proxy may leave the name out.
                let host = hello.server_name.clone().or_else(|| self.to.host.clone());
                match host {
                    Some(host) if hello.may_speak_http() && self.session.has_secrets_for(&host) => {
                        self.inspect(stream, host, &hello).await;
                    }
                    host => self.raw(stream, host, true, server).await,
                }
            }
            First::Unfinished { tls: true } => self.block(&self.to.shown(), UNFINISHED),
            _ => self.raw(stream, self.to.host.clone(), false, server).await,
        }
    }

    async fn allowlist<S: Io>(&self, stream: Peeked<S>, first: First, server: Option<TcpStream>) {
        match first {
            First::Gone => {}
            First::Tls(hello) => self.allowlist_tls(stream, hello).await,
            First::Malformed(why) => self.block(&self.to.shown(), why),
            First::Unfinished { .. } => self.block(&self.to.shown(), UNFINISHED),
            First::Http(Sniffed::Http2) => self.block(&self.to.shown(), "HTTP/2 without TLS"),
            First::Http(_) => self.plain(stream).await,
            First::Other if self.may_be_raw() => {
                self.raw(stream, self.to.host.clone(), false, server).await;
            }
            First::Other | First::Silent if self.to.is_web() => {
                self.block(&self.to.shown(), "neither HTTP nor TLS");
            }
            First::Other | First::Silent => self.block(&self.to.shown(), NOT_ALLOWED),
        }
    }

    /// Whether bytes that nobody reads may go where this connection wants to.
    fn may_be_raw(&self) -> bool {
        let (host, address) = (self.to.host.as_deref(), self.to.addresses.first().copied());
        match self.policy.mode {
            EgressMode::None => false,
            EgressMode::Open => true,
            EgressMode::Allowlist => self.session.allows_raw(&self.policy, host, address, self.to.port),
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
            self.raw(stream, Some(host), true, None).await;
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
        self.inside_tls(stream, host, hello, upstream).await;
    }

    /// Is the host for the client, with a connection to it or the reason why there is none.
    async fn inside_tls<S: Io>(
        &self,
        stream: Peeked<S>,
        host: String,
        hello: &ClientHello,
        upstream: Result<UpstreamTls, Refusal>,
    ) {
        let protocols: &[&[u8]] = match &upstream {
            Ok(upstream) if speaks_http_2(upstream) => &[HTTP_2],
            Ok(_) => &[HTTP_1],
            Err(_) => &[HTTP_2, HTTP_1],
        };
        let accept = self.gateway.tls.accept(stream, &host, protocols, self.session.is_crowded());
        let accepted = tokio::time::timeout(HANDSHAKE, accept).await;
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
            Ok(mut upstream) if hello.protocols.is_empty() && self.may_be_other(&host) => {
                if matches!(first_of_both(&mut stream, &mut upstream).await, First::Other) {
                    self.decide(Some(&host), Kind::Raw { tls: false });
                    self.session.note_allowed(&host, self.to.port, None);
                    return tunnel(stream, upstream).await;
                }
                Ok(upstream)
            }
            upstream => upstream,
        };
        let site = Site { host: Some(host), to: self.to.clone(), secure: true };
        self.proxy(site).carry_secure(stream, is_http_2, upstream).await;
    }

    async fn refuse<S: Io>(&self, stream: S, refusal: Refusal) {
        let mut stream = Peeked::new(stream);
        match first(&mut stream, REFUSED_SILENCE).await {
            First::Gone => {}
            First::Tls(hello) => {
                let host = hello.server_name.clone().unwrap_or_else(|| self.to.shown());
                self.inside_tls(stream, host, &hello, Err(Refusal { of_tunnel: true, ..refusal })).await;
            }
            _ => {
                let _ = refusal.write(&mut stream).await;
            }
        }
    }

    /// Whether what comes inside TLS may be something else than HTTP.
    fn may_be_other(&self, host: &str) -> bool {
        self.policy.mode == EgressMode::Open
            || self.session.allows_raw(&self.policy, Some(host), None, self.to.port)
    }

    /// HTTP without TLS: each request names its host. No secret is put into it.
    async fn plain<S: Io>(&self, stream: Peeked<S>) {
        self.decide(None, Kind::Inspected);
        let site = Site { host: self.to.host.clone(), to: self.to.clone(), secure: false };
        self.proxy(site).carry_plain(stream, false).await;
    }

    /// Nobody reads it from here on. `server`: it has been joined with it already.
    async fn raw<S: Io>(
        &self,
        stream: Peeked<S>,
        host: Option<String>,
        tls: bool,
        server: Option<TcpStream>,
    ) {
        let server = match server {
            Some(server) => Ok(server),
            None => self.dial_raw(host.as_deref()).await,
        };
        self.decide(host.as_deref(), Kind::Raw { tls });
        match server {
            Ok(server) => tunnel(stream, server).await,
            Err(refusal) => self.session.note_refusal(&refusal, self.to.port),
        }
    }

    async fn dial_raw(&self, host: Option<&str>) -> Result<TcpStream, Refusal> {
        self.decide(host, Kind::Raw { tls: false });
        self.session.note_allowed(host.unwrap_or(&self.to.shown()), self.to.port, None);
        // Under an allowlist a name decides where it goes. Otherwise it goes where it wants.
        match (host, self.policy.mode) {
            (Some(host), EgressMode::Allowlist) => self.gateway.dial(self.session, host, &self.to).await,
            _ => self.gateway.connect(&self.to.shown(), &self.to.addresses, self.to.port).await,
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
