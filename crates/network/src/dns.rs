//! Names for one sandbox. The host asks, because the host's resolver is often at an address that sandboxes cannot reach.
//!
//! - A sandbox that may reach everything: its questions go to the host's resolver and back, unread but bounded.
//! - One behind the gateway: [`answer`](answers) reads each question. Only addresses of names that its policy allows are
//!   asked for, and what is answered is pinned first, so that the connection that follows goes to where the answer says.

mod answers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use warren_types::EgressMode;

use self::answers::Rate;
use crate::egress::{Gateway, Session};

/// Questions of one sandbox under way at the same time; more are dropped, as a busy resolver does.
const MAX_QUESTIONS: usize = 64;
const MAX_CONNECTIONS: usize = 8;
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Largest message over UDP, in bytes.
const MAX_MESSAGE: usize = 4096;
/// Bytes of one TCP connection, each way.
const MAX_STREAM: u64 = 256 * 1024;

/// Whose questions are answered, and what the answers come from.
#[derive(Clone)]
pub(crate) struct Served {
    session: Arc<Session>,
    gateway: Arc<Gateway>,
    rate: Arc<Rate>,
}

impl Served {
    pub(crate) fn new(session: Arc<Session>, gateway: Arc<Gateway>) -> Self {
        Self { session, gateway, rate: Arc::default() }
    }

    /// Whether questions are read.
    fn reads(&self) -> bool {
        self.session.is_gated() || self.session.policy().mode == EgressMode::None
    }

    /// The answer to one question; `None` where there is to be none.
    async fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        if self.reads() {
            return answers::answer(question, self).await;
        }
        self.forward(question).await
    }

    async fn forward(&self, question: &[u8]) -> Option<Vec<u8>> {
        for upstream in self.gateway.names().servers() {
            if let Ok(Ok(answer)) = tokio::time::timeout(QUESTION_DEADLINE, ask(question, upstream)).await {
                return Some(answer);
            }
        }
        None
    }
}

/// Serves until `stop`.
pub(crate) fn serve(
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    served: Served,
    stop: CancellationToken,
) -> io::Result<()> {
    let udp = UdpSocket::from_std(udp)?;
    let tcp = TcpListener::from_std(tcp)?;
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve_udp(Arc::new(udp), served.clone()) => {}
            () = serve_tcp(tcp, served) => {}
        }
    });
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, served: Served) {
    let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut message = [0; MAX_MESSAGE];
    loop {
        let (length, asker) = match socket.recv_from(&mut message).await {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer could not be delivered; says nothing about this socket.
                debug!(%error, "a sandbox's resolver could not receive");
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (socket, served, question) = (socket.clone(), served.clone(), message[..length].to_vec());
        tokio::spawn(async move {
            let _place = place;
            if let Some(answer) = served.answer(&question).await {
                let _ = socket.send_to(&answer, asker).await;
            }
        });
    }
}

async fn ask(question: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn serve_tcp(listener: TcpListener, served: Served) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else { continue };
        let served = served.clone();
        tokio::spawn(async move {
            let _place = place;
            let passed = async {
                match served.reads() {
                    true => answer_all(client, &served).await,
                    false => pass(client, &served).await,
                }
            };
            let _ = tokio::time::timeout(CONNECTION_DEADLINE, passed).await;
        });
    }
}

/// Questions one after the other, each with its length in front.
async fn answer_all(mut client: TcpStream, served: &Served) -> io::Result<()> {
    for _ in 0..MAX_STREAM / 512 {
        let length = client.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        client.read_exact(&mut question).await?;
        let Some(answer) = served.answer(&question).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        client.write_u16(length).await?;
        client.write_all(&answer).await?;
    }
    Ok(())
}

async fn pass(mut client: TcpStream, served: &Served) -> io::Result<()> {
    let upstream = served.gateway.names().servers().into_iter().next().ok_or(io::ErrorKind::NotFound)?;
    let mut server = TcpStream::connect(upstream).await?;
    let (from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let (mut asked, mut answered) = (from_client.take(MAX_STREAM), from_server.take(MAX_STREAM));
    tokio::select! {
        result = tokio::io::copy(&mut asked, &mut to_server) => {
            result?;
            to_server.shutdown().await?;
            tokio::io::copy(&mut answered, &mut to_client).await.map(drop)
        }
        result = tokio::io::copy(&mut answered, &mut to_client) => result.map(drop),
    }
}
