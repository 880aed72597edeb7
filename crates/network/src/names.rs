//! Which addresses a name stands for, asked of the host's resolvers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// For one name, all resolvers together.
const DEADLINE: Duration = Duration::from_secs(5);
/// A resolver that has not answered in this time is asked no more; the next one is.
const ATTEMPT: Duration = Duration::from_millis(1600);
const MAX_MESSAGE: usize = 4096;
/// Aliases followed within one answer.
const MAX_ALIASES: usize = 16;
const MAX_ADDRESSES: usize = 64;
const MAX_RESOLVERS: usize = 3;

/// Looks names up. Keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Names {
    resolvers: Vec<SocketAddr>,
}

impl Names {
    /// `resolvers` empty: those of `/etc/resolv.conf`, read at each lookup.
    #[must_use]
    pub fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers }
    }

    /// Whom it asks, the first first.
    pub(crate) fn servers(&self) -> Vec<SocketAddr> {
        if self.resolvers.is_empty() { of_the_host() } else { self.resolvers.clone() }
    }

    /// Its IPv4 addresses, at least one. `NotFound` for a name that has none, `TimedOut` when nobody answered.
    pub async fn lookup(&self, host: &str) -> io::Result<Vec<Ipv4Addr>> {
        // With the dot at the end: never a name below one of the host's search domains.
        let name = Name::from_ascii(format!("{}.", host.trim_end_matches('.')))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let addresses = timeout(DEADLINE, self.ask_all(&name)).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no resolver answered for {host}"))
        })??;
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no IPv4 address")));
        }
        Ok(addresses)
    }

    async fn ask_all(&self, name: &Name) -> io::Result<Vec<Ipv4Addr>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "this host has no resolver");
        for resolver in self.servers() {
            match timeout(ATTEMPT, ask(name, resolver)).await {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer"),
            }
        }
        Err(last)
    }
}

/// Resolvers of this host, as `/etc/resolv.conf` has them now: they change when a laptop changes networks.
fn of_the_host() -> Vec<SocketAddr> {
    parse_resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .take(MAX_RESOLVERS)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

async fn ask(name: &Name, resolver: SocketAddr) -> io::Result<Vec<Ipv4Addr>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), RecordType::A));
    let question = message.to_vec().map_err(io::Error::other)?;
    let mut answer = over_udp(&question, &message, resolver).await?;
    if answer.metadata.truncation {
        answer = over_tcp(&question, &message, resolver).await?;
    }
    addresses(name, &answer)
}

async fn over_udp(question: &[u8], asked: &Message, resolver: SocketAddr) -> io::Result<Message> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own, and connected: what others send is not taken for the answer.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(message) = answer_to(asked, &answer[..length]) {
            return Ok(message);
        }
    }
}

async fn over_tcp(question: &[u8], asked: &Message, resolver: SocketAddr) -> io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answer_to(asked, &answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer to what was asked"))
}

/// Another question's answer, and what is no message at all, is none.
fn answer_to(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let same = message.metadata.id == asked.metadata.id && message.queries == asked.queries;
    (same && message.metadata.message_type == hickory_proto::op::MessageType::Response).then_some(message)
}

/// The addresses of `name` in an answer, its aliases followed.
fn addresses(name: &Name, answer: &Message) -> io::Result<Vec<Ipv4Addr>> {
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        code => return Err(io::Error::other(format!("the resolver answered: {code}"))),
    }
    let mut name = name;
    for _ in 0..MAX_ALIASES {
        let alias = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *name => Some(&alias.0),
            _ => None,
        });
        match alias {
            Some(alias) => name = alias,
            None => break,
        }
    }
    let of_name = answer.answers.iter().filter(|record| record.name == *name);
    let addresses = of_name.filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    });
    Ok(addresses.take(MAX_ADDRESSES).collect())
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
