//! A small HTTP/1.1 client: one kept-alive connection over TCP (without delay) or a Unix socket.
//!
//! Owns nothing but its connection and does little per request, so that what is measured is the server. Every call has
//! a deadline; a connection the server closed is opened again before the next request, never in the middle of one.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Longest wait for the head of an answer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// Largest answer that is kept in memory.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One client, one connection; clones open their own.
pub(crate) struct Client {
    address: Address,
    headers: HeaderMap,
    connection: Option<SendRequest<Body>>,
}

/// An answer that was read whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Body made of pieces, each repeated until its length is reached; lets a gigabyte be sent from one megabyte.
pub(crate) struct Repeated {
    pieces: VecDeque<(Bytes, u64)>,
}

// === impl Client ===

impl Clone for Client {
    fn clone(&self) -> Self {
        Self { address: self.address.clone(), headers: self.headers.clone(), connection: None }
    }
}

impl Client {
    pub(crate) fn new(address: Address) -> Self {
        let host = match &address {
            Address::Tcp(address) => HeaderValue::from_str(&address.to_string()),
            Address::Unix(_) => Ok(HeaderValue::from_static("localhost")),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.expect("an address is visible ASCII"));
        Self { address, headers, connection: None }
    }

    /// Sends this header with every request.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Opens the connection now, so that the first request need not.
    pub(crate) async fn connect(&mut self) -> anyhow::Result<()> {
        self.ready().await.map(|_| ())
    }

    /// One call with a JSON body or none. Anything but a success is an error with the server's words in it.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let body = body.map(|body| full(Bytes::from(body.to_string())));
        let content = body.is_some().then_some("application/json");
        let response = self.send(method.clone(), path, content, body.unwrap_or_else(empty)).await?;
        let answer = tokio::time::timeout(DEADLINE, collect(response))
            .await
            .with_context(|| format!("{method} {path}: the answer did not end"))??;
        if !answer.status.is_success() {
            let words = String::from_utf8_lossy(&answer.body);
            bail!("{method} {path}: {} {}", answer.status, words.trim());
        }
        Ok(answer)
    }

    /// Sends a request and returns the head of its answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = self.request(method, path, body)?;
        if let Some(content_type) = content_type {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let answer = self.ready().await?.send_request(request);
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        let answer = answer.with_context(|| format!("{path}: no answer in {} s", DEADLINE.as_secs()))?;
        answer.with_context(|| format!("{path}: the connection broke"))
    }

    /// A call that turns its connection into a plain stream, as Docker's attach does. Uses a connection of its own.
    pub(crate) async fn upgrade(&self, path: &str, body: &Value) -> anyhow::Result<TokioIo<Upgraded>> {
        let mut other = self.clone();
        let mut request = other.request(Method::POST, path, full(Bytes::from(body.to_string())))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
        let response = tokio::time::timeout(DEADLINE, other.ready().await?.send_request(request)).await??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let answer = collect(response).await?;
            bail!("POST {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body).trim());
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    fn request(&self, method: Method, path: &str, body: Body) -> anyhow::Result<Request<Body>> {
        let mut request = Request::builder().method(method).uri(path).body(body)?;
        request.headers_mut().clone_from(&self.headers);
        Ok(request)
    }

    async fn ready(&mut self) -> anyhow::Result<&mut SendRequest<Body>> {
        let usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.connection = Some(match &self.address {
                Address::Tcp(address) => {
                    let stream = TcpStream::connect(address)
                        .await
                        .with_context(|| format!("could not reach {address}"))?;
                    stream.set_nodelay(true)?;
                    drive(stream).await?
                }
                Address::Unix(path) => {
                    let stream = UnixStream::connect(path).await;
                    drive(stream.with_context(|| format!("could not reach {}", path.display()))?).await?
                }
            });
        }
        self.connection.as_mut().context("no connection")
    }
}

/// Starts a connection; its task ends with it.
async fn drive<T>(stream: T) -> anyhow::Result<SendRequest<Body>>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // What goes wrong on it shows in the request that waits for it.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn collect(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}

// === impl Repeated ===

impl Repeated {
    /// Pieces with the number of bytes each stands for.
    pub(crate) fn new(pieces: impl IntoIterator<Item = (Bytes, u64)>) -> Self {
        Self {
            pieces: pieces.into_iter().filter(|(piece, length)| !piece.is_empty() && *length > 0).collect(),
        }
    }

    fn left(&self) -> u64 {
        self.pieces.iter().map(|(_, length)| length).sum()
    }
}

impl http_body::Body for Repeated {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some((piece, length)) = self.pieces.front_mut() else { return Poll::Ready(None) };
        let take = usize::try_from(*length).unwrap_or(usize::MAX).min(piece.len());
        let frame = piece.slice(..take);
        *length -= take as u64;
        if *length == 0 {
            self.pieces.pop_front();
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_repeated_body_has_exactly_the_bytes_it_announces() {
        let body = Repeated::new([
            (Bytes::from_static(b"head"), 4),
            (Bytes::from_static(b"abc"), 8),
            (Bytes::from_static(b"never"), 0),
            (Bytes::from_static(b"\0\0"), 3),
        ]);
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(15));
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(bytes.as_ref(), b"headabcabcab\0\0\0");
    }
}
