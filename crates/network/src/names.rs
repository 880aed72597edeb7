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
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::CNAME;
    use tokio::net::TcpListener;

    fn record(name: &str, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), 60, data)
    }

    fn a(name: &str, last: u8) -> Record {
        record(name, RData::A(Ipv4Addr::new(203, 0, 113, last).into()))
    }

    /// A resolver that answers each question over UDP with what `answer` makes of it, and over TCP with one address.
    async fn resolver(answer: fn(Message) -> Vec<Message>) -> Names {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 600];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                for message in answer(Message::from_vec(&buffer[..length]).unwrap()) {
                    udp.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut question).await.unwrap();
                let mut message = Message::from_vec(&question).unwrap().into_response();
                message.add_answer(a("a.example.", 9));
                let bytes = message.to_vec().unwrap();
                stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        Names::new(vec![address])
    }

    async fn last_bytes(names: Names) -> io::Result<Vec<u8>> {
        names
            .lookup("A.example")
            .await
            .map(|addresses| addresses.iter().map(|address| address.octets()[3]).collect())
    }

    #[tokio::test]
    async fn aliases_are_followed_and_other_names_are_not() {
        let names = resolver(|message| {
            let mut message = message.into_response();
            let alias = |to: &str| RData::CNAME(CNAME(Name::from_ascii(to).unwrap()));
            message.add_answer(record("b.example.", alias("c.example.")));
            message.add_answer(record("a.example.", alias("b.example.")));
            message
                .add_answer(a("c.example.", 1))
                .add_answer(a("c.example.", 2))
                .add_answer(a("evil.example.", 3));
            vec![message]
        });
        assert_eq!(last_bytes(names.await).await.unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn a_circle_of_aliases_ends() {
        let names = resolver(|message| {
            let mut message = message.into_response();
            message.add_answer(record(
                "a.example.",
                RData::CNAME(CNAME(Name::from_ascii("a.example.").unwrap())),
            ));
            vec![message]
        });
        assert_eq!(last_bytes(names.await).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn answers_to_other_questions_are_not_taken() {
        let names = resolver(|message| {
            let (mut other, mut number) = (message.clone().into_response(), message.clone().into_response());
            other.queries = vec![Query::query(Name::from_ascii("b.example.").unwrap(), RecordType::A)];
            other.add_answer(a("a.example.", 1));
            number.metadata.id ^= 1;
            number.add_answer(a("a.example.", 2));
            let mut right = message.into_response();
            right.add_answer(a("a.example.", 3));
            vec![other, number, right]
        });
        assert_eq!(last_bytes(names.await).await.unwrap(), [3]);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_asked_for_again() {
        let names = resolver(|message| {
            let mut message = message.into_response();
            message.metadata.truncation = true;
            vec![message]
        });
        assert_eq!(last_bytes(names.await).await.unwrap(), [9]);
    }

    #[tokio::test]
    async fn a_name_that_is_not_there_is_told_from_a_resolver_that_fails() {
        let none = resolver(|message| {
            let mut message = message.into_response();
            message.metadata.response_code = ResponseCode::NXDomain;
            vec![message]
        });
        assert_eq!(last_bytes(none.await).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let failing = resolver(|message| {
            let mut message = message.into_response();
            message.metadata.response_code = ResponseCode::ServFail;
            vec![message]
        });
        assert_eq!(last_bytes(failing.await).await.unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[test]
    fn resolvers_are_read_as_the_system_reads_them() {
        let text = "# comment\nsearch corp\nnameserver 10.0.0.2\n nameserver\t::1\nnameserver nonsense\noptions edns0\n";
        let expected: Vec<SocketAddr> = vec!["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse_resolvers(text), expected);
    }
}
