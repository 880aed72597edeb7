//! Names for one sandbox: its questions go to the host's resolver and back, unread but bounded.
//!
//! The host asks, because the host's resolver is often at an address that sandboxes cannot reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Questions of one sandbox under way at the same time; more are dropped, as a busy resolver does.
const MAX_QUESTIONS: usize = 64;
const MAX_CONNECTIONS: usize = 8;
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Largest message over UDP, in bytes.
const MAX_MESSAGE: usize = 4096;
/// Bytes of one TCP connection, each way.
const MAX_STREAM: u64 = 256 * 1024;

/// Serves until `stop`.
pub(crate) fn serve(
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    stop: CancellationToken,
) -> io::Result<()> {
    let udp = UdpSocket::from_std(udp)?;
    let tcp = TcpListener::from_std(tcp)?;
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve_udp(Arc::new(udp)) => {}
            () = serve_tcp(tcp) => {}
        }
    });
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>) {
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
        let (socket, question) = (socket.clone(), message[..length].to_vec());
        tokio::spawn(async move {
            let _place = place;
            for upstream in upstreams() {
                if let Ok(Ok(answer)) =
                    tokio::time::timeout(QUESTION_DEADLINE, ask(&question, upstream)).await
                {
                    let _ = socket.send_to(&answer, asker).await;
                    return;
                }
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

async fn serve_tcp(listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(CONNECTION_DEADLINE, pass(client)).await;
        });
    }
}

async fn pass(mut client: TcpStream) -> io::Result<()> {
    use tokio::io::AsyncReadExt;
    let upstream = upstreams().into_iter().next().ok_or(io::ErrorKind::NotFound)?;
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

/// The host's resolvers, read anew each time: they change when a laptop changes networks.
fn upstreams() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    parse_resolvers(&text)
}

fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .take(3)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_system_reads_them() {
        let text = "# comment\nsearch corp\nnameserver 10.0.0.2\n nameserver\t::1\nnameserver nonsense\noptions edns0\n";
        let expected: Vec<SocketAddr> = vec!["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse_resolvers(text), expected);
    }
}
