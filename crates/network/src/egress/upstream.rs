//! The connection towards hosts that belongs to one connection of a sandbox: opened when a request needs it, kept while
//! requests are for the same host.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::HOST;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::body::Body;
use super::connection::Destination;
use super::dial::UpstreamTls;
use super::form::Target;
use super::framing::MAX_HEAD;
use super::io::Io;
use super::proxy::{MAX_HEADERS, Windows};
use super::refusal::Refusal;
use super::session::Session;
use super::tls::{HTTP_2, Protocols};

/// Bytes of a reply that are passed on at once, and the most that its head may have. Each piece wakes the task of the other side.
const MAX_PIECE: usize = 256 * 1024;
/// The same for a sandbox with many connections: one that is not read holds a few pieces.
const MAX_PIECE_OF_MANY: usize = 32 * 1024;

pub(crate) struct Upstream {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    close: CancellationToken,
    to: Destination,
    secure: bool,
    http_2: AtomicBool,
    open: Mutex<Option<Open>>,
}

struct Open {
    host: String,
    port: u16,
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// A request on its way, apart from what depends on the protocol it goes out by.
pub(crate) struct Outgoing {
    pub(crate) target: Target,
    pub(crate) port: u16,
    pub(crate) path: PathAndQuery,
    pub(crate) request: Request<Body>,
}

// === impl Upstream ===

impl Upstream {
    /// `close` ends its connections.
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        session: Arc<Session>,
        close: CancellationToken,
        to: Destination,
        secure: bool,
    ) -> Self {
        Self { gateway, session, close, to, secure, http_2: AtomicBool::new(false), open: Mutex::default() }
    }

    /// Says what its client speaks: a host is asked for nothing newer, because a WebSocket needs HTTP/1.1 to the end.
    pub(crate) fn speak(&self, http_2: bool) {
        self.http_2.store(http_2, Ordering::Relaxed);
    }

    /// Takes over a connection that is there already.
    pub(crate) async fn begin(&self, host: &str, stream: UpstreamTls) -> Result<(), Refusal> {
        let sender = self.begin_tls(host, stream).await?;
        *self.open.lock().await = Some(Open { host: host.to_owned(), port: self.to.port, sender });
        Ok(())
    }

    /// Sends it and waits for the beginning of the reply. Once more over a new connection when the one that was open
    /// had been closed before anything was sent.
    pub(crate) async fn send(&self, mut outgoing: Outgoing) -> Result<Response<Incoming>, Refusal> {
        if let Some(reply) = self.try_send(&mut outgoing, true).await? {
            return Ok(reply);
        }
        *self.open.lock().await = None;
        self.try_send(&mut outgoing, false).await?.ok_or_else(|| ended(&outgoing.target.host))
    }

    /// None when nothing was sent and it can be tried again.
    async fn try_send(
        &self,
        outgoing: &mut Outgoing,
        again: bool,
    ) -> Result<Option<Response<Incoming>>, Refusal> {
        let mut open = self.open.lock().await;
        let sender = self.ready(&mut open, &outgoing.target.host, outgoing.port).await?;
        let request = outgoing.shaped(sender.is_http_2(), self.secure);
        let sent = match sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => {
                let mut sender = sender.clone();
                drop(open);
                sender.try_send_request(request).await
            }
        };
        match sent.map_err(|mut failed| failed.take_message()) {
            Ok(reply) => Ok(Some(reply)),
            Err(Some(request)) if again => {
                outgoing.request = request;
                Ok(None)
            }
            Err(_) => Err(ended(&outgoing.target.host)),
        }
    }

    /// A connection that can take a request for that host now.
    async fn ready<'a>(
        &self,
        slot: &'a mut Option<Open>,
        host: &str,
        port: u16,
    ) -> Result<&'a mut Sender, Refusal> {
        let kept = match slot.take() {
            Some(mut open) if open.host == host && open.port == port => {
                open.sender.ready().await.then_some(open)
            }
            _ => None,
        };
        let open = match kept {
            Some(open) => open,
            None => Open { host: host.to_owned(), port, sender: self.dial(host, port).await? },
        };
        Ok(&mut slot.insert(open).sender)
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Sender, Refusal> {
        let to = Destination { port, ..self.to.clone() };
        if self.secure {
            let protocols =
                if self.http_2.load(Ordering::Relaxed) { Protocols::Both } else { Protocols::Http1 };
            let stream = self.gateway.dial_tls(&self.session, host, &to, protocols).await?;
            return self.begin_tls(host, stream).await;
        }
        let stream = self.gateway.dial(&self.session, host, &to).await?;
        self.begin_http_1(host, stream).await
    }

    async fn begin_tls(&self, host: &str, stream: UpstreamTls) -> Result<Sender, Refusal> {
        if stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
            return self.begin_http_1(host, stream).await;
        }
        let windows = Windows::of(&self.session);
        let begun = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_send_buf_size(windows.send)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = begun.map_err(|error| not_begun(host, &error))?;
        self.drive(connection);
        Ok(Sender::Http2(sender))
    }

    async fn begin_http_1<S: Io>(&self, host: &str, stream: S) -> Result<Sender, Refusal> {
        let piece = if self.session.is_crowded() { MAX_PIECE_OF_MANY } else { MAX_PIECE };
        let begun = http1::Builder::new()
            .max_buf_size(piece)
            .max_headers(MAX_HEADERS)
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = begun.map_err(|error| not_begun(host, &error))?;
        self.drive(connection.with_upgrades());
        Ok(Sender::Http1(sender))
    }

    /// Runs a connection to a host until it ends, or the client's does.
    fn drive<E: Send + 'static>(&self, connection: impl Future<Output = Result<(), E>> + Send + 'static) {
        let close = self.close.clone();
        tokio::spawn(async move {
            let _ = close.run_until_cancelled(connection).await;
        });
    }
}

fn not_begun(host: &str, error: &hyper::Error) -> Refusal {
    Refusal::upstream(StatusCode::BAD_GATEWAY, host, format!("HTTP with {host} did not begin: {error}"))
}

pub(crate) fn ended(host: &str) -> Refusal {
    Refusal::upstream(
        StatusCode::BAD_GATEWAY,
        host,
        format!("the connection to {host} ended before it answered"),
    )
}

// === impl Sender ===

impl Sender {
    fn is_http_2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Waits until it can take a request; false when it never will.
    async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// As the protocol it goes out by has it.
    fn shaped(&mut self, is_http_2: bool, secure: bool) -> Request<Body> {
        let mut request = std::mem::replace(&mut self.request, Request::new(Body::default()));
        if is_http_2 {
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
            uri.authority = self.target.authority.parse().ok();
            uri.path_and_query = Some(self.path.clone());
            *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
        } else {
            *request.uri_mut() = Uri::from(self.path.clone());
            *request.version_mut() = Version::HTTP_11;
            request.headers_mut().remove(http::header::TE);
            if let Ok(host) = HeaderValue::from_str(&self.target.authority) {
                request.headers_mut().insert(HOST, host);
            }
        }
        request
    }
}
