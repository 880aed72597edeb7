//! The first bytes of a connection: both ends agree on a protocol version before anything else.
//!
//! ```text
//! node  -> agent   magic[8] "WARRENGA"  oldest u16  newest u16  nonce u32      (big-endian, 16 bytes)
//! agent -> node    magic[8] "WARRENGA"  chosen u16  status u16  nonce u32
//! ```
//!
//! A checkpoint holds an old agent, so a node keeps speaking old versions. The nonce lets a node find the
//! beginning of its own conversation on a port that may still hold bytes of an earlier one.
//!
//! A socket makes a new stream for each connection. A serial port has one for all of them, and a machine that was
//! restored from a snapshot may be in the middle of somebody else's conversation, so there both ends look for the
//! beginning ([`connect_port`], [`accept_port`]): the node says hello, with another nonce each time, until the answer to
//! its latest one comes, and then says go. The agent answers every hello and starts at a go. Everything else is skipped.
//!
//! ```text
//! node  -> agent   hello, hello …, "WARRENGA" chosen u16  0xFFFF u16  nonce u32
//! agent -> node    an answer to each hello
//! ```

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const MAGIC: [u8; 8] = *b"WARRENGA";
/// Oldest and newest protocol version this code speaks.
pub const OLDEST: u16 = 2;
/// From this version on a command may be started under an id that the node has chosen, see [`crate::exec::ExecStart::id`].
pub const CHOSEN_IDS: u16 = 3;
pub const NEWEST: u16 = 3;

const LENGTH: usize = 16;
const STATUS_OK: u16 = 0;
const STATUS_NO_COMMON_VERSION: u16 = 1;
/// In the second field of a go. As the newest version of a hello it would mean nothing, so the two are not confused.
const GO: u16 = u16::MAX;
/// How long the first answer on a port may take before hello is said again; each further one may take twice as long, so
/// that a machine that is slow to answer is not asked over and over, with each question making its last answer void.
const HELLO_AGAIN: Duration = Duration::from_millis(30);
const HELLO_AGAIN_AT_MOST: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the connection broke during the handshake")]
    Io(#[from] std::io::Error),
    #[error("the other end does not speak Warren's guest protocol")]
    NotWarren,
    #[error(
        "no common protocol version: we speak {OLDEST} to {NEWEST}, the other end {theirs_oldest} to {theirs_newest}"
    )]
    NoCommonVersion { theirs_oldest: u16, theirs_newest: u16 },
    #[error("the other end answered another conversation")]
    WrongNonce,
}

/// What a node sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub oldest: u16,
    pub newest: u16,
    pub nonce: u32,
}

impl Hello {
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        encode(self.oldest, self.newest, self.nonce)
    }

    pub fn decode(bytes: &[u8; LENGTH]) -> Result<Self, HandshakeError> {
        let (oldest, newest, nonce) = decode(bytes)?;
        Ok(Self { oldest, newest, nonce })
    }

    /// The newest version both ends speak.
    #[must_use]
    pub fn common_version(self) -> Option<u16> {
        let version = NEWEST.min(self.newest);
        (version >= OLDEST && version >= self.oldest).then_some(version)
    }
}

fn encode(first: u16, second: u16, nonce: u32) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&first.to_be_bytes());
    bytes[10..12].copy_from_slice(&second.to_be_bytes());
    bytes[12..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8; LENGTH]) -> Result<(u16, u16, u32), HandshakeError> {
    if bytes[..8] != MAGIC {
        return Err(HandshakeError::NotWarren);
    }
    let first = u16::from_be_bytes([bytes[8], bytes[9]]);
    let second = u16::from_be_bytes([bytes[10], bytes[11]]);
    let nonce = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    Ok((first, second, nonce))
}

/// The node's side; returns the version agreed on.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    nonce: u32,
) -> Result<u16, HandshakeError> {
    stream.write_all(&Hello { oldest: OLDEST, newest: NEWEST, nonce }.encode()).await?;
    stream.flush().await?;
    let mut answer = [0; LENGTH];
    stream.read_exact(&mut answer).await?;
    let (version, status, echoed) = decode(&answer)?;
    if echoed != nonce {
        return Err(HandshakeError::WrongNonce);
    }
    if status != STATUS_OK || !(OLDEST..=NEWEST).contains(&version) {
        return Err(HandshakeError::NoCommonVersion { theirs_oldest: version, theirs_newest: version });
    }
    Ok(version)
}

/// The agent's side; returns the version agreed on.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<u16, HandshakeError> {
    let mut bytes = [0; LENGTH];
    stream.read_exact(&mut bytes).await?;
    let hello = Hello::decode(&bytes)?;
    let common = hello.common_version();
    let (version, status) = match common {
        Some(version) => (version, STATUS_OK),
        None => (NEWEST, STATUS_NO_COMMON_VERSION),
    };
    stream.write_all(&encode(version, status, hello.nonce)).await?;
    stream.flush().await?;
    common.ok_or(HandshakeError::NoCommonVersion { theirs_oldest: hello.oldest, theirs_newest: hello.newest })
}

/// The last sixteen bytes that came, for finding a message among others.
struct Window {
    bytes: [u8; LENGTH],
    filled: usize,
}

impl Window {
    fn new() -> Self {
        Self { bytes: [0; LENGTH], filled: 0 }
    }

    /// The next message; drops what is none. Nothing is lost when this is cancelled.
    async fn next<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> Result<(u16, u16, u32), HandshakeError> {
        loop {
            while self.filled < LENGTH {
                let read = stream.read(&mut self.bytes[self.filled..]).await?;
                if read == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
                self.filled += read;
            }
            if let Ok(message) = decode(&self.bytes) {
                self.filled = 0;
                return Ok(message);
            }
            // On to the next byte that may begin one.
            let skip = (1..LENGTH).find(|&from| {
                let rest = &self.bytes[from..];
                rest.iter().zip(MAGIC).all(|(have, want)| *have == want)
            });
            let skip = skip.unwrap_or(LENGTH);
            self.bytes.copy_within(skip.., 0);
            self.filled = LENGTH - skip;
        }
    }
}

/// The node's side on a serial port; returns the version agreed on. Goes on until it is cancelled.
pub async fn connect_port<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    first_nonce: u32,
) -> Result<u16, HandshakeError> {
    let mut window = Window::new();
    let mut patience = HELLO_AGAIN;
    for attempt in 0.. {
        let nonce = first_nonce.wrapping_add(attempt);
        stream.write_all(&Hello { oldest: OLDEST, newest: NEWEST, nonce }.encode()).await?;
        stream.flush().await?;
        let answered = async {
            loop {
                let (version, status, echoed) = window.next(stream).await?;
                if echoed == nonce {
                    return Ok::<_, HandshakeError>((version, status));
                }
            }
        };
        let Ok(answer) = tokio::time::timeout(patience, answered).await else {
            patience = (patience * 2).min(HELLO_AGAIN_AT_MOST);
            continue;
        };
        let (version, status) = answer?;
        if status != STATUS_OK || !(OLDEST..=NEWEST).contains(&version) {
            return Err(HandshakeError::NoCommonVersion { theirs_oldest: version, theirs_newest: version });
        }
        stream.write_all(&encode(version, GO, nonce)).await?;
        stream.flush().await?;
        return Ok(version);
    }
    unreachable!("it is tried until it works or is cancelled")
}

/// The agent's side on a serial port; returns when a node is there and a version agreed on.
pub async fn accept_port<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<u16, HandshakeError> {
    let mut window = Window::new();
    let mut answered = None;
    loop {
        let (first, second, nonce) = window.next(stream).await?;
        if second == GO {
            if answered == Some((first, nonce)) {
                return Ok(first);
            }
            continue;
        }
        let hello = Hello { oldest: first, newest: second, nonce };
        let (version, status) = match hello.common_version() {
            Some(version) => {
                answered = Some((version, nonce));
                (version, STATUS_OK)
            }
            None => (NEWEST, STATUS_NO_COMMON_VERSION),
        };
        stream.write_all(&encode(version, status, nonce)).await?;
        stream.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn both_ends_agree_on_the_newest_version() {
        let (mut node, mut agent) = tokio::io::duplex(64);
        let (ours, theirs) = tokio::join!(connect(&mut node, 7), accept(&mut agent));
        assert_eq!(ours.unwrap(), NEWEST);
        assert_eq!(theirs.unwrap(), NEWEST);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn strangers_and_strange_versions_are_refused() {
        let (mut node, mut agent) = tokio::io::duplex(64);
        node.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(matches!(accept(&mut agent).await, Err(HandshakeError::NotWarren)));

        let (mut node, mut agent) = tokio::io::duplex(64);
        node.write_all(&Hello { oldest: 900, newest: 901, nonce: 1 }.encode()).await.unwrap();
        assert!(matches!(accept(&mut agent).await, Err(HandshakeError::NoCommonVersion { .. })));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_to_somebody_else_is_refused() {
        let (mut node, mut agent) = tokio::io::duplex(64);
        agent.write_all(&encode(NEWEST, STATUS_OK, 8)).await.unwrap();
        assert!(matches!(connect(&mut node, 7).await, Err(HandshakeError::WrongNonce)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_port_full_of_old_bytes_is_read_up_to_the_right_conversation() {
        let (mut node, mut agent) = tokio::io::duplex(4096);
        // What an earlier node has left, a hello of its own included, and half a message.
        node.write_all(b"PRI * HTTP/2.0\r\nWARRWARRENGA").await.unwrap();
        node.write_all(&Hello { oldest: OLDEST, newest: NEWEST, nonce: 3 }.encode()).await.unwrap();
        node.write_all(&encode(NEWEST, GO, 99)).await.unwrap();
        node.write_all(b"WARREN").await.unwrap();
        agent.write_all(b"\0\0\x12an old answer").await.unwrap();
        let (ours, theirs) = tokio::join!(connect_port(&mut node, 7), accept_port(&mut agent));
        assert_eq!((ours.unwrap(), theirs.unwrap()), (NEWEST, NEWEST));
        // Both ends are at the same place.
        node.write_all(b"x").await.unwrap();
        agent.write_all(b"y").await.unwrap();
        assert_eq!((agent.read_u8().await.unwrap(), node.read_u8().await.unwrap()), (b'x', b'y'));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn an_agent_that_comes_late_finds_the_node_still_there() {
        let (mut node, mut agent) = tokio::io::duplex(4096);
        let late = async {
            tokio::time::sleep(HELLO_AGAIN * 5).await;
            accept_port(&mut agent).await
        };
        let (ours, theirs) = tokio::join!(connect_port(&mut node, 7), late);
        assert_eq!((ours.unwrap(), theirs.unwrap()), (NEWEST, NEWEST));
        node.write_all(b"x").await.unwrap();
        agent.write_all(b"y").await.unwrap();
        assert_eq!((agent.read_u8().await.unwrap(), node.read_u8().await.unwrap()), (b'x', b'y'));
    }
}
