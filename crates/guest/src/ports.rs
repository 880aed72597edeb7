//! Connections to programs in the sandbox that listen on a port, for whoever is outside.
//!
//! ```text
//!   request's body ── feed ──▶ socket ── PortStream ──▶ answer's body
//! ```
//!
//! Nothing is read ahead: a piece is taken from one side when the other has room for it. When the answer is given up the
//! connection is closed, also while a program keeps its input waiting. When the program has ended its side, what is still
//! on its way to it gets [`LINGER`].

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use warren_guest_api::ports::CODE_NOTHING_LISTENING;
use warren_types::{Error, ErrorKind};

use crate::buffer::Buffer;
use crate::reply::{Chunk, Source};
use crate::request::next_bytes;
use crate::rest::Rest;

/// Connections held at once.
const MAX_OPEN: usize = 1024;
/// A program that listens accepts at once; one whose queue is full for this long is as good as none.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_secs(30);
/// A piece smaller than this is copied, so that it does not keep a large buffer in use.
const COPY_BELOW: usize = 32 * 1024;

/// The connections that are open.
pub(crate) struct Ports {
    open: Rc<Cell<usize>>,
    rest: Rc<Rest>,
}

/// One of them, while anything of it is left.
struct Place {
    open: Rc<Cell<usize>>,
    rest: Rc<Rest>,
}

/// What a program sends. Dropping it before its end closes the connection.
pub(crate) struct PortStream {
    socket: OwnedReadHalf,
    /// Told when the program has ended its side, dropped when nobody wants to hear it any more.
    ended: Option<oneshot::Sender<()>>,
    _place: Rc<Place>,
}

impl Ports {
    pub(crate) fn new(rest: Rc<Rest>) -> Self {
        Self { open: Rc::default(), rest }
    }

    /// Connects to what listens on `port` and sends it `input`.
    pub(crate) async fn connect(&self, port: u16, input: Incoming) -> Result<PortStream, Error> {
        let place = Rc::new(self.enter()?);
        let connected = tokio::time::timeout(CONNECT_DEADLINE, connect(port));
        let socket = connected.await.map_err(|_| {
            Error::unavailable(format!(
                "what listens on port {port} did not accept a connection within {} s",
                CONNECT_DEADLINE.as_secs()
            ))
        })??;
        // Without it small answers wait for each other; a socket that refuses still works.
        let _ = socket.set_nodelay(true);
        let (reader, writer) = socket.into_split();
        let (ended, given_up) = oneshot::channel();
        let held = Rc::clone(&place);
        tokio::task::spawn_local(async move {
            send(input, writer, given_up).await;
            drop(held);
        });
        Ok(PortStream { socket: reader, ended: Some(ended), _place: place })
    }

    fn enter(&self) -> Result<Place, Error> {
        if self.open.get() >= MAX_OPEN {
            let message = format!("{MAX_OPEN} connections to ports are open already; close some");
            return Err(Error::new(ErrorKind::LimitReached, message));
        }
        self.open.set(self.open.get() + 1);
        Ok(Place { open: Rc::clone(&self.open), rest: Rc::clone(&self.rest) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
        self.rest.note_work();
    }
}

async fn connect(port: u16) -> Result<TcpStream, Error> {
    let mut reason = None;
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()] {
        match TcpStream::connect(address).await {
            Ok(socket) => return Ok(socket),
            // The first says it best: without IPv6 the second fails for another reason.
            Err(error) => drop(reason.get_or_insert(error)),
        }
    }
    Err(match reason {
        Some(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
            Error::unavailable(format!("port {port} cannot be connected to: {error}"))
        }
        _ => Error::unavailable(format!("nothing listens on port {port}")).with_code(CODE_NOTHING_LISTENING),
    })
}

/// Writes the input, until its end, or for as long as it is of use.
async fn send(input: Incoming, mut socket: OwnedWriteHalf, given_up: oneshot::Receiver<()>) {
    let feeding = feed(input, &mut socket);
    tokio::pin!(feeding);
    tokio::select! {
        () = &mut feeding => {}
        ended = given_up => {
            if ended.is_ok() {
                let _ = tokio::time::timeout(LINGER, feeding).await;
            }
        }
    }
}

async fn feed(mut input: Incoming, socket: &mut OwnedWriteHalf) {
    while let Some(bytes) = next_bytes(&mut input).await {
        let Ok(bytes) = bytes else { return };
        if socket.write_all(&bytes).await.is_err() {
            // It reads no more; what it still sends is the answer's.
            return;
        }
    }
    let _ = socket.shutdown().await;
}

impl Source for PortStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        loop {
            ready!(self.socket.as_ref().poll_read_ready(context))?;
            let mut buffer = Buffer::take();
            match self.socket.try_read(&mut buffer) {
                Ok(0) => {
                    if let Some(ended) = self.ended.take() {
                        let _ = ended.send(());
                    }
                    return Poll::Ready(None);
                }
                Ok(read) if read < COPY_BELOW => {
                    return Poll::Ready(Some(Ok(Bytes::copy_from_slice(&buffer[..read]).into())));
                }
                Ok(read) => return Poll::Ready(Some(Ok(buffer.freeze(read).into()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}
