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
//! - `first` tells what a client says first, `connection` decides, `dial` reaches hosts, `proxy` carries requests over
//!   `upstream`, `request` and `reply` change them; `meter` and `budget` limit how much.
//! - Addresses of names come from what the sandbox was told ([`Session::pin`]) or are asked for anew; [`crate::Reach`] is
//!   asked about the very address that is dialled.
//!
//! What it cannot do: values shorter than 4 bytes are not looked for in replies, and a host that writes a value in a
//! form of its own making (reversed, encrypted, one byte a reply) is not found out. Secrets go only to hosts that the
//! owner has named for that reason.

mod authority;
mod blocked;
mod body;
mod budget;
pub mod client_hello;
mod connection;
mod decode;
mod dial;
mod events;
mod explicit;
mod first;
mod form;
mod forms;
mod framing;
mod io;
mod journal;
mod lines;
mod live;
mod meter;
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
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warren_node_api::{NetworkEvents, NetworkEventsQuery, SecretUses, SecretUsesQuery};

pub use authority::Authority;
pub use connection::Destination;
pub use io::Io;
pub use session::Session;

use crate::names::Names;
use crate::reach::Reach;
use budget::Budget;
use events::EventLog;
use tls::Tls;
use uses::UseLog;

/// Connections of all sandboxes together, where this process may have the files for them: each has two ends. The rest is for
/// clients, and for what sandboxes are made of.
const MAX_CONNECTIONS: usize = 16 * 1024;
const FILES_OF_ONE: usize = 4;
/// No sandbox has more than such a part of all.
const SHARE: usize = 4;
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
    /// Connections that one sandbox may have.
    share: usize,
    bodies: Arc<Semaphore>,
}

/// With so many open files.
fn most_connections(files: Option<u64>) -> usize {
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    (files / FILES_OF_ONE).min(MAX_CONNECTIONS)
}

impl Gateway {
    /// Reads the host's trusted authorities and `extra_roots`; fails when that file cannot be read. `folder` is where it keeps
    /// what secrets were used for until that is taken.
    pub fn new(authority: Authority, settings: GatewaySettings, folder: &Path) -> Result<Arc<Self>> {
        // The program has raised it by now.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = most_connections(files);
        Ok(Arc::new(Self {
            tls: Tls::new(authority, settings.extra_roots.as_deref())?,
            names: Names::new(settings.resolvers),
            reach: settings.reach,
            sources: RwLock::default(),
            uses: Arc::new(UseLog::open(folder)),
            events: Arc::new(EventLog::open(folder)),
            places: Arc::new(Semaphore::new(most)),
            share: most / SHARE,
            bodies: Budget::of_all(),
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

    /// A place for one more connection of a sandbox, unless it or all together have too many. It is kept for as long as the
    /// connection is open.
    pub(crate) fn place(&self, session: &Session) -> Option<[OwnedSemaphorePermit; 2]> {
        if session.connections() >= self.share {
            return None;
        }
        let place = |places: &Arc<Semaphore>| places.clone().try_acquire_owned().ok();
        Some([place(&self.places)?, place(&session.places)?])
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

    /// The sandbox whose connections come from `source`.
    pub fn session_at(&self, source: Ipv4Addr) -> Option<Arc<Session>> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).get(&source).cloned()
    }

    fn who_and_where(&self, stream: &TcpStream, peer: SocketAddr) -> Option<(Arc<Session>, Destination)> {
        let IpAddr::V4(source) = peer.ip() else { return None };
        let Some(session) = self.session_at(source) else {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(most_connections(Some(4096)), 1024);
        assert_eq!(most_connections(Some(1 << 20)), MAX_CONNECTIONS);
        assert_eq!(most_connections(None), MAX_CONNECTIONS);
    }
}
