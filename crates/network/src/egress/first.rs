//! What a client says first, which decides what becomes of its connection.
//!
//! There are protocols in which the server speaks first. A client that says nothing is therefore joined with its server after
//! a moment, and looked at all the same: what it says before the server has said anything is judged as if it had said it
//! at once, however late.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use super::client_hello::{self, ClientHello, Parsed};
use super::io::{Io, Peeked};
use super::sniff::{Sniffed, sniff};

/// For what a client says first, once it has begun to; and for all of it where it has to speak first.
pub(crate) const FIRST_BYTES: Duration = Duration::from_secs(10);
/// A client that has said nothing by then may wait for the server to speak.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
/// Most that is looked at before it is decided.
const MAX_SEEN: usize = client_hello::MAX_BYTES;
/// How TLS begins.
const HANDSHAKE: u8 = 22;
const BUFFER: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) enum First {
    Tls(ClientHello),
    Http(Sniffed),
    /// Something else, or the server has spoken first.
    Other,
    /// Nothing for a while.
    Silent,
    /// It begins like TLS and is not.
    Malformed(&'static str),
    /// It may have become TLS or HTTP, and did not go on.
    Unfinished {
        tls: bool,
    },
    Gone,
}

/// Looks at what the client says first, and waits so long for it to begin.
pub(crate) async fn first<S: Io>(stream: &mut Peeked<S>, patience: Duration) -> First {
    match timeout(patience, stream.look()).await {
        Err(_) => First::Silent,
        Ok(Ok(0) | Err(_)) => First::Gone,
        Ok(Ok(_)) => rest(stream).await,
    }
}

/// The same, of a client that is joined with its server: until either of them speaks. What the server says is passed on.
pub(crate) async fn first_of_both<S: Io>(stream: &mut Peeked<S>, server: &mut impl Io) -> First {
    let mut buffer = vec![0; BUFFER];
    let said = tokio::select! {
        biased;
        looked = stream.look() => match looked {
            Ok(0) | Err(_) => return First::Other,
            Ok(_) => None,
        },
        read = server.read(&mut buffer) => Some(read),
    };
    match said {
        None => rest(stream).await,
        Some(Err(_)) => First::Gone,
        Some(Ok(length)) => {
            let passed = async {
                stream.write_all(&buffer[..length]).await?;
                stream.flush().await
            };
            if passed.await.is_ok() { First::Other } else { First::Gone }
        }
    }
}

/// Until what has begun can be told.
async fn rest<S: Io>(stream: &mut Peeked<S>) -> First {
    let end = Instant::now() + FIRST_BYTES;
    loop {
        if let Some(first) = judge(stream.seen()) {
            return first;
        }
        match timeout_at(end, stream.look()).await {
            // Nothing can come any more that would change what it is.
            Ok(Ok(0)) => return First::Other,
            Ok(Err(_)) => return First::Gone,
            Ok(Ok(_)) => {}
            Err(_) => return First::Unfinished { tls: stream.seen().first() == Some(&HANDSHAKE) },
        }
    }
}

/// None while it cannot be told.
fn judge(seen: &[u8]) -> Option<First> {
    if seen.first() == Some(&HANDSHAKE) && seen.get(1).is_none_or(|major| *major == 3) {
        return match client_hello::parse(seen) {
            Parsed::Complete(hello) => Some(First::Tls(hello)),
            Parsed::Malformed(why) => Some(First::Malformed(why)),
            Parsed::Partial => None,
        };
    }
    match sniff(seen) {
        Sniffed::Partial if seen.len() < MAX_SEEN => None,
        Sniffed::Partial | Sniffed::Other => Some(First::Other),
        http => Some(First::Http(http)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test(start_paused = true)]
    async fn what_is_begun_and_not_ended_is_nothing_else() {
        for (bytes, tls) in [(&b"\x16"[..], true), (b"\x16\x03\x01\x02\x00\x01", true), (b"GE", false)] {
            let (mut client, stream) = duplex(100);
            client.write_all(bytes).await.unwrap();
            let first = first(&mut Peeked::new(stream), SILENCE).await;
            assert!(matches!(first, First::Unfinished { tls: found } if found == tls), "{first:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_judged_by_what_it_says_however_late_unless_the_server_has_spoken() {
        let (mut client, stream) = duplex(100);
        let (mut server, mut upstream) = duplex(100);
        let mut stream = Peeked::new(stream);
        assert!(matches!(first(&mut stream, SILENCE).await, First::Silent));
        let late = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        };
        let (found, ()) = tokio::join!(first_of_both(&mut stream, &mut upstream), late);
        assert!(matches!(found, First::Http(Sniffed::Http)), "{found:?}");

        let (mut client, stream) = duplex(100);
        server.write_all(b"220 hello\r\n").await.unwrap();
        let found = first_of_both(&mut Peeked::new(stream), &mut upstream).await;
        assert!(matches!(found, First::Other), "{found:?}");
        let mut line = [0; 11];
        client.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"220 hello\r\n");
    }
}
