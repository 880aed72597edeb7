//! Accepts the node's connections and serves HTTP/2 on each.
//!
//! ```text
//!   accept ──▶ handshake (within HANDSHAKE_DEADLINE) ──▶ HTTP/2 until it closes
//! ```
//!
//! A connection that says anything else is closed and nothing else happens. At most [`MAX_CONNECTIONS`] are held; more
//! wait to be accepted.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use warren_guest_api::handshake;

use crate::agent::Agent;
use crate::machine::port;
use crate::routes;

const MAX_CONNECTIONS: usize = 16;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which is a lack of descriptors and passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes one stream may have under way. The connection may have far more, so that a stream that stalls does not hold
/// up the others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
const MAX_FRAME: u32 = 1 << 20;
const SEND_BUFFER: usize = 1 << 20;
const MAX_STREAMS: u32 = 4096;

/// Runs until the process ends.
pub(crate) async fn serve(listener: StdListener, agent: Rc<Agent>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = Rc::clone(&agent);
                tokio::task::spawn_local(async move {
                    connection(stream, agent).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// The same over a machine's serial port, which has one connection at a time.
pub(crate) async fn serve_port(device: OwnedFd, agent: Rc<Agent>) -> io::Result<()> {
    port::each_connection(device, |mut stream| {
        let agent = Rc::clone(&agent);
        async move {
            // No deadline: whoever is connected and says nothing keeps only himself waiting.
            if handshake::accept_port(&mut stream).await.is_ok() {
                requests(stream, agent).await;
            }
        }
    })
    .await
}

async fn connection(mut stream: impl AsyncRead + AsyncWrite + Unpin + 'static, agent: Rc<Agent>) {
    match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake::accept(&mut stream)).await {
        Ok(Ok(_version)) => {}
        Ok(Err(_)) | Err(_) => return,
    }
    requests(stream, agent).await;
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, agent: Rc<Agent>) {
    let service = service_fn(move |request| {
        let agent = Rc::clone(&agent);
        async move { Ok::<_, Infallible>(routes::answer(&agent, request).await) }
    });
    // A connection that breaks is the node's to notice; there is nobody here to tell.
    let _ = http2::Builder::new(OnThisThread)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Runs the connection's tasks beside everything else.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future + 'static> Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
