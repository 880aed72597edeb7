//! Reaching hosts: which address, whether it may be, and a connection to it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::Destination;
use super::refusal::Refusal;
use super::session::Session;
use super::tls::Protocols;
use super::{Gateway, prepare};

/// For one address.
const CONNECT: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(10);
const MAX_TRIED: usize = 4;

pub(crate) type UpstreamTls = tokio_rustls::client::TlsStream<TcpStream>;

impl Gateway {
    /// A connection to that host: to where the client wanted, if the host is known to be there, otherwise to where the
    /// name says.
    pub(crate) async fn dial(
        &self,
        session: &Session,
        host: &str,
        to: &Destination,
    ) -> Result<TcpStream, Refusal> {
        let addresses = self.addresses(session, host, to).await.map_err(|error| unresolved(host, &error))?;
        self.connect(host, &addresses, to.port).await
    }

    /// The same, with TLS begun and the host's certificate checked.
    pub(crate) async fn dial_tls(
        &self,
        session: &Session,
        host: &str,
        to: &Destination,
        protocols: Protocols,
    ) -> Result<UpstreamTls, Refusal> {
        let stream = self.dial(session, host, to).await?;
        match timeout(HANDSHAKE, self.tls.connect(stream, host, protocols)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                let error = format!("no TLS with {host}: {error}");
                Err(Refusal::upstream(StatusCode::BAD_GATEWAY, host, error))
            }
            Err(_) => Err(late(host)),
        }
    }

    /// Where a name is, for a client that leaves finding out to us; at least one, and some may not be reached.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<Ipv4Addr>, Refusal> {
        match host.parse() {
            Ok(address) => Ok(vec![address]),
            Err(_) => self.names.lookup(host).await.map_err(|error| unresolved(host, &error)),
        }
    }

    pub(crate) fn may_reach(&self, address: Ipv4Addr) -> bool {
        // Services of this host would take us for one of their own, at whichever of its addresses.
        self.reach.is_opened(address) || (self.reach.allows(address) && !is_this_host(address))
    }

    /// The first of the addresses that answers. What the very address is, is asked here, right before it is dialled.
    pub(crate) async fn connect(
        &self,
        host: &str,
        addresses: &[Ipv4Addr],
        port: u16,
    ) -> Result<TcpStream, Refusal> {
        let reachable: Vec<_> = addresses.iter().filter(|address| self.may_reach(**address)).collect();
        if reachable.is_empty() {
            return Err(Refusal::private(host));
        }
        let mut last = late(host);
        for address in reachable.into_iter().take(MAX_TRIED) {
            match timeout(CONNECT, TcpStream::connect((*address, port))).await {
                Ok(Ok(stream)) => {
                    prepare(&stream);
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    let error = format!("could not connect to {host} on port {port}: {error}");
                    last = Refusal::upstream(StatusCode::BAD_GATEWAY, host, error);
                }
                Err(_) => last = late(host),
            }
        }
        Err(last)
    }

    async fn addresses(&self, session: &Session, host: &str, to: &Destination) -> io::Result<Vec<Ipv4Addr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        // A client of the proxy was told where this host is by ourselves.
        if to.host.as_deref() == Some(host) && !to.addresses.is_empty() {
            return Ok(to.addresses.clone());
        }
        if to.host.is_none() {
            let pinned: Vec<_> =
                to.addresses.iter().copied().filter(|address| session.is_pinned(host, *address)).collect();
            if !pinned.is_empty() {
                return Ok(pinned);
            }
        }
        self.names.lookup(host).await
    }
}

fn late(host: &str) -> Refusal {
    Refusal::upstream(StatusCode::GATEWAY_TIMEOUT, host, format!("{host} did not answer in time"))
}

fn unresolved(host: &str, error: &io::Error) -> Refusal {
    let status = match error.kind() {
        io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    Refusal::upstream(status, host, format!("the name {host} was not found: {error}"))
}

/// Asks the kernel which way it would send: to itself, if an address is one of this host's. Sends nothing.
fn is_this_host(address: Ipv4Addr) -> bool {
    let local = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddr::from((address, 9)))?;
        socket.local_addr()
    };
    local().is_ok_and(|local| local.ip() == IpAddr::V4(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_host_is_known_to_be_one() {
        assert!(is_this_host(Ipv4Addr::LOCALHOST));
        assert!(!is_this_host(Ipv4Addr::new(203, 0, 113, 77)));
    }
}
