//! The gateway that what leaves a gated sandbox passes. It runs on the host; nothing a sandbox does inside goes round it,
//! because the firewall sends its connections here and drops everything else.
//!
//! ```text
//!   connection ──▶ first bytes ──▶ TLS ──▶ name ──▶ refused: answered in words over our certificate
//!                      │            │        ├────▶ passed through unread (open, and no secret is meant for it)
//!                      │            │        └────▶ ended here, and begun anew towards the host: each request is
//!                      │            │               judged, tokens become values, values in replies tokens again
//!                      │            └─ no name: passed through (open) or refused
//!                      ├─ HTTP: passed through (open), or each request is judged; secrets are never put in
//!                      └─ others: passed through (open, or a rule names that port), or refused
//! ```
//!
//! - [`Session`] is what is in force for one sandbox; a connection holds on to it and asks it anew for every request.
//! - `connection` decides, `dial` reaches hosts, `proxy` carries requests over `upstream`, `request` and `reply` change them.
//! - Addresses of names come from what the sandbox was told ([`Session::pin`]) or are asked for anew; [`crate::Reach`] is
//!   asked about the very address that is dialled.
//!
//! What it cannot do: values shorter than 4 bytes are not looked for in replies, and a host that writes a value in a
//! form of its own making (reversed, encrypted, one byte a reply) is not found out. Secrets go only to hosts that the
//! owner has named for that reason.

mod authority;
mod blocked;
mod body;
pub mod client_hello;
mod connection;
mod decode;
mod dial;
mod events;
mod explicit;
mod form;
mod framing;
mod io;
mod open;
mod pins;
mod proxy;
mod refusal;
pub mod replace;
mod reply;
mod request;
mod secrets;
mod session;
pub mod sniff;
mod tls;
mod upstream;
mod uses;
mod websocket;

use std::collections::HashMap;
use std::io::Result;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warren_node_api::{NetworkEvents, NetworkEventsQuery, SecretUses, SecretUsesQuery};

pub use authority::Authority;
pub use connection::Destination;
pub use io::Io;
pub use session::Session;

use crate::names::Names;
use crate::reach::Reach;
use events::EventLog;
use tls::Tls;
use uses::UseLog;

/// Connections of all sandboxes together.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// A peer that is gone without a word is found out after this and a few probes.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// After this host had no descriptor left for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// What an operator may say of the gateway.
#[derive(Debug, Clone, Default)]
pub struct GatewaySettings {
    /// Empty: those of `/etc/resolv.conf`, read anew at each lookup.
    pub resolvers: Vec<SocketAddr>,
    pub reach: Reach,
    /// A PEM file of authorities that upstreams are trusted by, beside the host's.
    pub extra_roots: Option<PathBuf>,
}

/// Of one node; serves all its sandboxes.
pub struct Gateway {
    tls: Tls,
    names: Names,
    reach: Reach,
    sources: RwLock<HashMap<Ipv4Addr, Arc<Session>>>,
    uses: Arc<UseLog>,
    events: Arc<EventLog>,
    places: Arc<Semaphore>,
}

impl Gateway {
    /// Reads the host's trusted authorities and `extra_roots`; fails when that file cannot be read.
    pub fn new(authority: Authority, settings: GatewaySettings) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            tls: Tls::new(authority, settings.extra_roots.as_deref())?,
            names: Names::new(settings.resolvers),
            reach: settings.reach,
            sources: RwLock::default(),
            uses: Arc::default(),
            events: Arc::default(),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }))
    }

    /// Connections that the firewall has turned round. Their source names the sandbox; one that no session is attached
    /// for is closed. Serves until `stop`, which closes all of them.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        accept(&listener, &stop, |stream, peer| {
            let Some((session, destination)) = self.who_and_where(&stream, peer) else { return };
            let (gateway, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                let _ = stop.run_until_cancelled(gateway.handle(stream, destination, session)).await;
            });
        })
        .await;
    }

    /// The proxy inside one sandbox, for programs that are told of it: `CONNECT`, and requests with a whole address.
    pub async fn serve_proxy(
        self: Arc<Self>,
        listener: TcpListener,
        session: Arc<Session>,
        stop: CancellationToken,
    ) {
        accept(&listener, &stop, |stream, _| {
            let (gateway, session, stop) = (self.clone(), session.clone(), stop.clone());
            tokio::spawn(async move {
                let _ = stop.run_until_cancelled(explicit::handle(gateway, stream, session)).await;
            });
        })
        .await;
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Connections from `source` are that session's from now on.
    pub fn attach(&self, source: Ipv4Addr, session: Arc<Session>) {
        session.tell(self.events.clone());
        self.sources.write().unwrap_or_else(PoisonError::into_inner).insert(source, session);
    }

    /// Undoes [`Self::attach`] and closes the session's connections.
    pub fn detach(&self, source: Ipv4Addr) {
        let session = self.sources.write().unwrap_or_else(PoisonError::into_inner).remove(&source);
        if let Some(session) = session {
            session.close_all();
        }
    }

    /// The same batch until it is acknowledged.
    pub fn take_uses(&self, query: SecretUsesQuery) -> SecretUses {
        self.uses.take(query)
    }

    /// The same batch until it is acknowledged.
    pub fn take_events(&self, query: NetworkEventsQuery) -> NetworkEvents {
        self.events.take(query)
    }

    fn who_and_where(&self, stream: &TcpStream, peer: SocketAddr) -> Option<(Arc<Session>, Destination)> {
        let IpAddr::V4(source) = peer.ip() else { return None };
        let session = self.sources.read().unwrap_or_else(PoisonError::into_inner).get(&source).cloned();
        let Some(session) = session else {
            debug!(%peer, "a connection of no sandbox that is known");
            return None;
        };
        let original = match SockRef::from(stream).original_dst_v4() {
            Ok(address) => address.as_socket_ipv4()?,
            Err(error) => {
                debug!(%peer, %error, "a connection that was not turned round to here");
                return None;
            }
        };
        Some((session, Destination::address(*original.ip(), original.port())))
    }
}

async fn accept(
    listener: &TcpListener,
    stop: &CancellationToken,
    mut each: impl FnMut(TcpStream, SocketAddr),
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                prepare(&stream);
                each(stream, peer);
            }
            Err(error) => {
                warn!(%error, "the gateway could not take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Small messages leave at once, and a peer that is gone is noticed. A socket that refuses either works without.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE));
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
