//! Where clients connect: TCP, or TLS with the operator's own certificate.
//!
//! ```text
//!   place? ──▶ accept ──▶ TLS? ── handshake within `handshake` ──▶ HTTP/1.1 or HTTP/2, each head within `head`
//!     │
//!     └ who has been quiet for longest leaves ([`room`])
//! ```
//!
//! Each connection is a task of its own; [`attention`] says how long it is waited for. The certificate is read anew when its files
//! change, so that whatever renews it need not tell the server. Files that cannot be used are said so in the log, and the
//! certificate from before stays.

mod attention;
mod bodies;
mod certificate;
mod room;
mod stream;
mod watched;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use attention::{Attention, Look};
use certificate::Certificate;
pub use certificate::CertificateError;
use room::Room;
use stream::Stream;
use watched::Watched;

/// Pause after a failed accept, which is a lack of descriptors and passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection that is to end may still take, for what it says to that.
const FAREWELL: Duration = Duration::from_secs(1);

/// Files of a certificate, as PEM: the chain with the server's own first, and its key.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
    pub tls: bool,
}

/// What clients are given before their connections end. Of requests that are under way only `taken` concerns any.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For TLS to begin.
    pub handshake: Duration,
    /// For the head of a request, from its first byte, and for the first of a connection from when that was accepted.
    pub head: Duration,
    /// From the end of one request to the first byte of the next. Longer than clients usually keep a connection, so that it
    /// is seldom the server that ends one.
    pub idle: Duration,
    /// For some of what is sent to be taken, when there is something to be sent. Long enough for somebody who reads it by the page.
    pub taken: Duration,
    /// Connections that may ask for nothing at once.
    pub quiet: usize,
}

/// Accepts connections and serves them.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    patience: Patience,
    stop: CancellationToken,
}

/// A connection that was accepted.
struct Connection {
    peer: Peer,
    router: Router,
    attention: Arc<Attention>,
    stop: CancellationToken,
}

// === impl Patience ===

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(20),
            idle: Duration::from_secs(300),
            taken: Duration::from_secs(600),
            quiet: 1024,
        }
    }
}

// === impl Listener ===

impl Listener {
    /// Serves TLS when there are files for it. What is behind it ends when `stop` is cancelled.
    pub fn new(
        tcp: TcpListener,
        tls: Option<TlsFiles>,
        stop: CancellationToken,
    ) -> Result<Self, CertificateError> {
        let tls = tls.map(Certificate::open).transpose()?.map(|certificate| {
            let acceptor = TlsAcceptor::from(certificate.config());
            tokio::spawn(stop.clone().run_until_cancelled_owned(certificate.keep_fresh()));
            acceptor
        });
        Ok(Self { tcp, tls, patience: Patience::default(), stop })
    }

    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Serves until it is to stop, and then until every connection has ended.
    pub async fn serve(self, router: Router) {
        let (connections, room) = (TaskTracker::new(), Arc::new(Room::new(self.patience.quiet)));
        // Not for its state, which it has: it becomes ready for requests now, not at each of them.
        let router: Router = router.with_state(());
        let next = async || {
            room.place().await;
            accept(&self.tcp).await
        };
        while let Some((stream, address)) = self.stop.run_until_cancelled(next()).await {
            let connection = Connection {
                peer: Peer { address, tls: self.tls.is_some() },
                router: router.clone(),
                attention: Attention::new(self.patience, Arc::clone(&room)),
                stop: self.stop.clone(),
            };
            connections.spawn(connection.begin(stream, self.tls.clone(), self.patience.handshake));
        }
        drop(self.tcp);
        connections.close();
        connections.wait().await;
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Pieces of a streamed answer must not wait for each other.
                let _ = stream.set_nodelay(true);
                return (stream, address);
            }
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

// === impl Connection ===

impl Connection {
    async fn begin(self, stream: TcpStream, tls: Option<TlsAcceptor>, within: Duration) {
        let Some(acceptor) = tls else { return self.converse(Stream::Plain(stream)).await };
        let address = self.peer.address;
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(within, acceptor.accept(stream)) => shaken,
            () = self.attention.must_leave() => return,
            () = self.stop.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.converse(Stream::Tls(Box::new(stream))).await,
            Ok(Err(error)) => tracing::debug!(%address, %error, "a client's TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "a client's TLS handshake took too long"),
        }
    }

    async fn converse(self, stream: Stream) {
        let Self { peer, router, attention, stop } = self;
        let service = service_fn(|request: Request<Incoming>| {
            let (under_way, mut request) = attention.begin(request);
            let method = request.method().clone();
            request.extensions_mut().insert(ConnectInfo(peer));
            let answer = router.clone().oneshot(request);
            async move { answer.await.map(|response| under_way.answered(&method, response)) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // For WebSockets in HTTP/2.
        builder.http2().enable_connect_protocol();
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(&attention)));
        let mut connection = pin!(builder.serve_connection_with_upgrades(stream, service));
        let mut look = pin!(tokio::time::sleep_until(Instant::now()));
        let (mut stopping, mut is_over) = (false, false);
        loop {
            let late = tokio::select! {
                // A client that breaks off, or says what is no HTTP, is no news.
                _ = connection.as_mut() => return,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                () = attention.must_leave() => attention.late(),
                () = look.as_mut() => attention.look(),
            };
            match late {
                Look::Again(when) => look.as_mut().reset(when),
                Look::Stuck => {
                    tracing::debug!(address = %peer.address, "a client took nothing of what it asked for");
                    return;
                }
                // It was told before.
                _ if is_over => return,
                late => {
                    is_over = true;
                    look.as_mut().reset(Instant::now() + FAREWELL);
                    if late == Look::Unfinished {
                        attention.end();
                    } else {
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}
