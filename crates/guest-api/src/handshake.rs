//! The first bytes of a connection: both ends agree on a protocol version before anything else.
//!
//! ```text
//! node  -> agent   magic[8] "WARRENGA"  oldest u16  newest u16  nonce u32      (big-endian, 16 bytes)
//! agent -> node    magic[8] "WARRENGA"  chosen u16  status u16  nonce u32
//! ```
//!
//! A checkpoint holds an old agent, so a node keeps speaking old versions. The nonce lets a node find the
//! beginning of its own conversation on a port that may still hold bytes of an earlier one.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const MAGIC: [u8; 8] = *b"WARRENGA";
/// Oldest and newest protocol version this code speaks.
pub const OLDEST: u16 = 2;
pub const NEWEST: u16 = 2;

const LENGTH: usize = 16;
const STATUS_OK: u16 = 0;
const STATUS_NO_COMMON_VERSION: u16 = 1;

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
}
