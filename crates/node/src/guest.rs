//! The connection to one guest agent: HTTP/2 over its Unix socket.
//!
//! What comes back is a guest's: bodies are passed on unread, only a few headers with them, and a connection that breaks
//! the protocol is dropped.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tracing::debug;
use warren_guest_api::{MAX_JSON_BYTES, Status, handshake};
use warren_node_api::error_of;
use warren_types::{Error, ErrorKind};

use crate::kernel_limits::is_shortage;

/// Longest wait for a connection and its handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The same for a machine, whose processors may be emulated on a busy host.
const CONNECT_PORT_DEADLINE: Duration = Duration::from_secs(45);
/// How long a port that does not answer is kept the first time, and how long it is let go for after that; each further time
/// twice as long.
const PORT_KEPT: Duration = Duration::from_secs(1);
const PORT_LET_GO: Duration = Duration::from_millis(50);
/// A connection with a call under way is asked for a sign of life this often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(8);
/// The same of an agent in a virtual machine: one that is emulated gets to nothing for seconds when its host is busy, and the end of a machine
/// is seen without asking.
const KEEP_ALIVE_PORT: Duration = Duration::from_secs(25);
/// Bytes one stream may have under way before its reader has taken them. A connection may have as many as its streams
/// together, so that a reader who stalls holds up nobody else.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
const MAX_FRAME: u32 = 1 << 20;

/// Headers of an agent's answer that are passed on.
const PASSED_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_RANGE, header::LAST_MODIFIED];

/// A live connection; clones share it.
#[derive(Clone)]
pub(crate) struct Guest {
    sender: SendRequest<Body>,
    /// Of the protocol, as both ends have agreed.
    version: u16,
}

/// How an agent is reached.
#[derive(Debug, Clone, Copy)]
enum Channel {
    /// A socket that it accepts connections on.
    Socket,
    /// A port that holds what was said before anybody listened.
    Port,
}

impl Guest {
    /// Connects to the agent that listens in `folder`.
    pub(crate) async fn connect(folder: &Path) -> Result<Self, Error> {
        Self::connect_over(folder, Channel::Socket).await
    }

    /// Connects to the agent at the other end of a serial port, whose socket is in `folder`.
    pub(crate) async fn connect_port(folder: &Path) -> Result<Self, Error> {
        Self::connect_over(folder, Channel::Port).await
    }

    async fn connect_over(folder: &Path, channel: Channel) -> Result<Self, Error> {
        let trouble =
            |kind, what: String| Error::new(kind, format!("the sandbox's agent does not answer: {what}"));
        let deadline = match channel {
            Channel::Socket => CONNECT_DEADLINE,
            Channel::Port => CONNECT_PORT_DEADLINE,
        };
        tokio::time::timeout(deadline, Self::establish(folder, channel))
            .await
            .map_err(|_| trouble(ErrorKind::SandboxFailed, "it took too long".into()))?
            .map_err(|error| {
                // What this process lacks is nothing that a sandbox is to end for.
                let lacks = error.downcast_ref::<io::Error>().is_some_and(is_shortage)
                    || error.downcast_ref::<Errno>().is_some_and(|errno| is_shortage(&(*errno).into()));
                let kind = if lacks { ErrorKind::Unavailable } else { ErrorKind::SandboxFailed };
                trouble(kind, error.to_string())
            })
    }

    async fn establish(
        folder: &Path,
        channel: Channel,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let folder = rustix::fs::open(
            folder,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        // Socket addresses hold 108 bytes; through the descriptor a path of any length fits.
        let socket = format!("/proc/self/fd/{}/agent.sock", folder.as_raw_fd());
        let (stream, version) = match channel {
            Channel::Socket => {
                let mut stream = UnixStream::connect(socket).await?;
                let version = handshake::connect(&mut stream, random()?).await?;
                (stream, version)
            }
            Channel::Port => take_port(&socket).await?,
        };
        let keep_alive = match channel {
            Channel::Socket => KEEP_ALIVE,
            Channel::Port => KEEP_ALIVE_PORT,
        };
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(MAX_FRAME as usize)
            .keep_alive_interval(keep_alive)
            .keep_alive_timeout(keep_alive)
            .keep_alive_while_idle(false)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "the connection to a guest agent ended");
            }
        });
        Ok(Self { sender, version })
    }

    /// Whether its agent starts a command once that is asked for again under the same id.
    pub(crate) fn takes_chosen_ids(&self) -> bool {
        self.version >= handshake::CHOSEN_IDS
    }

    /// Whether calls can no longer be made over this connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Asks the agent how it is, to see whether it speaks the protocol.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        let nonsense = |what: String| Error::new(ErrorKind::SandboxFailed, what);
        let asked = async {
            let response = self.call(Request::new(Body::empty()), "/v1/status").await?;
            let body = Limited::new(response.into_body(), MAX_JSON_BYTES).collect().await;
            let body = body.map_err(|error| nonsense(format!("its answer broke off: {error}")))?.to_bytes();
            serde_json::from_slice::<Status>(&body)
                .map(drop)
                .map_err(|error| nonsense(format!("its answer cannot be read: {error}")))
        };
        tokio::time::timeout(CONNECT_DEADLINE, asked)
            .await
            .unwrap_or_else(|_| Err(nonsense("it took too long to answer".into())))
    }

    /// A call with JSON in and JSON out; `path_and_query` starts with `/v1/`.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let nonsense = |what: String| Error::new(ErrorKind::SandboxFailed, what);
        let json = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|error| Error::internal(format!("a request has no JSON form: {error}")))?,
            None => Vec::new(),
        };
        let mut request = Request::new(Body::from(json));
        *request.method_mut() = method;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = self.call(request, path_and_query).await?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_JSON_BYTES).collect().await;
        let bytes =
            bytes.map_err(|error| nonsense(format!("the agent's answer broke off: {error}")))?.to_bytes();
        if !status.is_success() {
            return Err(error_of(status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| nonsense(format!("the agent's answer cannot be read: {error}")))
    }

    /// The last `length` bytes of an answer.
    pub(crate) async fn tail(&self, path_and_query: &str, length: usize) -> Result<Vec<u8>, Error> {
        let mut body = self.call(Request::new(Body::empty()), path_and_query).await?.into_body();
        let mut kept = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Error::new(ErrorKind::SandboxFailed, format!("the agent's answer broke off: {error}"))
            })?;
            if let Ok(bytes) = frame.into_data() {
                kept.extend_from_slice(&bytes);
                let surplus = kept.len().saturating_sub(length);
                kept.drain(..surplus);
            }
        }
        Ok(kept)
    }

    /// Makes a call of the guest API; `path_and_query` starts with `/v1/`.
    pub(crate) async fn call(
        &self,
        mut request: Request<Body>,
        path_and_query: &str,
    ) -> Result<Response<Body>, Error> {
        let uri = Uri::builder()
            .scheme("http")
            .authority("guest")
            .path_and_query(path_and_query)
            .build()
            .map_err(|error| Error::invalid(format!("this path cannot be asked for: {error}")))?;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        // These belong to one connection and are not allowed in HTTP/2.
        for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            request.headers_mut().remove(name);
        }
        let (request, body_broke) = watched(request);
        let answer = self.sender.clone().send_request(request).await.map_err(|error| {
            // The agent is told of a body that fails by taking the request back, and to us that looks like the agent's failure.
            if body_broke.load(Ordering::Relaxed) {
                return Error::invalid("the body broke off before its end");
            }
            Error::new(ErrorKind::SandboxFailed, format!("the sandbox's agent broke off: {error}"))
        })?;
        let (mut parts, body) = answer.into_parts();
        parts.headers = passed(&parts.headers);
        parts.version = http::Version::HTTP_11;
        parts.extensions.clear();
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

/// Connects to a port whose machine may have been stopped in the middle of another conversation. What is said then is taken for
/// the rest of a message that never comes to its end. Its agent begins anew when it sees that nobody is there, and somebody
/// who comes at once is not seen to have been away: so a port that does not answer is let go for a moment.
async fn take_port(socket: &str) -> Result<(UnixStream, u16), Box<dyn std::error::Error + Send + Sync>> {
    let (mut kept, mut let_go) = (PORT_KEPT, PORT_LET_GO);
    loop {
        let mut stream = UnixStream::connect(socket).await?;
        if let Ok(answered) =
            tokio::time::timeout(kept, handshake::connect_port(&mut stream, random()?)).await
        {
            return Ok((stream, answered?));
        }
        drop(stream);
        tokio::time::sleep(let_go).await;
        kept *= 2;
        let_go *= 2;
    }
}

/// A request whose body says afterwards whether it failed.
fn watched(request: Request<Body>) -> (Request<Body>, Arc<AtomicBool>) {
    let broke = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&broke);
    let request = request.map(|body| {
        Body::new(body.map_err(move |error| {
            told.store(true, Ordering::Relaxed);
            error
        }))
    });
    (request, broke)
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    PASSED_HEADERS
        .into_iter()
        .filter_map(|name| headers.get(&name).map(|value: &HeaderValue| (name.clone(), value.clone())))
        .collect()
}

fn random() -> std::io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn an_agent_in_the_middle_of_another_conversation_is_left_alone_until_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("agent.sock")).unwrap();
        let agent = async {
            // All that is said is the rest of a message to it.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut taken = Vec::new();
            stream.read_to_end(&mut taken).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            handshake::accept_port(&mut stream).await.unwrap();
            (taken, stream)
        };
        let (guest, (taken, _stream)) = tokio::join!(Guest::connect_port(folder.path()), agent);
        assert!(guest.is_ok() && !taken.is_empty());
    }
}
