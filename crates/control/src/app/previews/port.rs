//! Connections to programs in sandboxes, and HTTP over them.
//!
//! ```text
//!   request ─▶ pool ─ connection at hand? ─ no ─▶ guest call `ports/{port}` ─▶ Channel ─▶ HTTP/1.1
//! ```
//!
//! A connection is the two bodies of one call to the agent; nothing here knows an address of a sandbox. Connections are kept
//! for a moment after use: shorter than programs usually keep theirs, so that it is seldom they who end one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use warren_guest_api::ports::CODE_NOTHING_LISTENING;
use warren_node_api::NodeClient;
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use crate::app::auth::has_been_stopped;
use crate::app::guest::from_node;

/// Kept for the next request.
const IDLE: Duration = Duration::from_secs(3);
const MAX_IDLE_PER_PORT: usize = 32;
/// How long an agent may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Waits before looking again for a program that does not listen yet: a server that was just started, or woken.
const AGAIN_AFTER: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(400),
];
/// Pieces on their way to the agent, and the most one may have.
const QUEUE: usize = 2;
const MAX_PIECE: usize = 64 * 1024;
/// Header fields a program may answer with.
const MAX_HEADERS: usize = 200;
/// The most that they may have together, and what is read of an answer at once: one that its client does not read holds a few pieces
/// of that.
const MAX_HEAD: usize = 64 * 1024;

/// Code of the error when the agent inside is from before previews.
const CODE_AGENT_TOO_OLD: &str = "agent_too_old";

/// Makes requests to ports of sandboxes.
pub(crate) struct PortClient {
    client: Client<Connector, Body>,
}

#[derive(Clone)]
struct Connector {
    node: Arc<NodeClient>,
}

/// A connection to a port, as bytes.
struct Channel {
    input: PollSender<Bytes>,
    output: Body,
    unread: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// There was no connection.
    Unreachable(Error),
    /// It ended, or what came is no HTTP. Whether the request had an effect is not known.
    BrokeOff(String),
}

// === impl PortClient ===

impl PortClient {
    pub(crate) fn new(node: NodeClient) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE_PER_PORT)
            .pool_timer(TokioTimer::new())
            .http1_max_headers(MAX_HEADERS)
            .http1_max_buf_size(MAX_HEAD)
            .set_host(false)
            .build(Connector { node: Arc::new(node) });
        Self { client }
    }

    /// Sends a request to a program; `path_and_query` is what stands in its first line.
    pub(crate) async fn request(
        &self,
        id: &SandboxId,
        port: u16,
        path_and_query: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        // The connector's address, and the pool's name for connections that are alike.
        let uri =
            Uri::builder().scheme("http").authority(format!("{id}:{port}")).path_and_query(path_and_query);
        let bad = |_| NoAnswer::Unreachable(Error::invalid("this path cannot be asked for"));
        *request.uri_mut() = uri.build().map_err(bad)?;
        *request.version_mut() = http::Version::HTTP_11;
        self.client.request(request).await.map_err(|error| no_answer(&error))
    }
}

fn no_answer(error: &hyper_util::client::legacy::Error) -> NoAnswer {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    let mut text = error.to_string();
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Error>() {
            return NoAnswer::Unreachable(refused.clone());
        }
        text = inner.to_string();
        cause = inner.source();
    }
    NoAnswer::BrokeOff(text)
}

// === impl Connector ===

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Channel>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Channel>, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let node = Arc::clone(&self.node);
        Box::pin(async move {
            let address = uri.host().and_then(|host| host.parse().ok()).zip(uri.port_u16());
            let (id, port) =
                address.ok_or_else(|| Error::internal("a preview was asked for without an address"))?;
            connect(&node, &id, port).await.map(TokioIo::new)
        })
    }
}

/// Connects, a few times if need be.
async fn connect(node: &NodeClient, id: &SandboxId, port: u16) -> Result<Channel, Error> {
    let mut waits = AGAIN_AFTER.into_iter();
    loop {
        match tokio::time::timeout(CONNECT_DEADLINE, open(node, id, port)).await {
            Ok(Err(error)) if is_nothing_listening(&error) => match waits.next() {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            },
            Ok(done) => return done,
            Err(_) => return Err(Error::unavailable("the sandbox's agent took too long to connect")),
        }
    }
}

pub(crate) fn is_nothing_listening(error: &Error) -> bool {
    error.code.as_deref() == Some(CODE_NOTHING_LISTENING)
}

async fn open(node: &NodeClient, id: &SandboxId, port: u16) -> Result<Channel, Error> {
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let pieces = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
        let piece = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), receiver))
    });
    let path = format!("ports/{port}");
    let answer = node
        .guest(id, Method::POST, &path, HeaderMap::new(), Body::from_stream(pieces))
        .await
        .map_err(from_node);
    match answer {
        Ok(answer) => {
            let output = answer.into_body();
            Ok(Channel { input: PollSender::new(sender), output, unread: Bytes::new() })
        }
        // An agent that knows ports answers with another kind, whatever the port.
        Err(error) if error.kind == ErrorKind::NotFound => Err(not_found(node, id).await),
        Err(error) => Err(error),
    }
}

/// It may have been the node that did not find the sandbox: deleted since the request was let in.
async fn not_found(node: &NodeClient, id: &SandboxId) -> Error {
    let is_gone = match node.get_sandbox(id).await {
        Ok(report) => report.state == SandboxState::Stopped,
        Err(error) => matches!(error.kind, ErrorKind::NotFound | ErrorKind::Gone),
    };
    if is_gone {
        return has_been_stopped(id);
    }
    let message = "the agent inside is from before previews; reboot the sandbox to start a current one";
    Error::new(ErrorKind::SandboxFailed, message).with_code(CODE_AGENT_TOO_OLD)
}

// === impl Channel ===

impl Connection for Channel {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.output).poll_frame(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.unread = bytes;
                    }
                }
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.input.poll_reserve(context)).map_err(|_| closed())?;
        let piece = &bytes[..bytes.len().min(MAX_PIECE)];
        self.input.send_item(Bytes::copy_from_slice(piece)).map_err(|_| closed())?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.close();
        Poll::Ready(Ok(()))
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the program does not read any more")
}
