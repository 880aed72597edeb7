//! WebSockets after their request: carried both ways, and what a host sends is read where it could hold a secret.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{self, AsyncReadExt, AsyncWriteExt};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::io::tunnel;
use super::replace::{Stream, Table};

const BUFFER: usize = 16 * 1024;
const MASKED: u8 = 0x80;
const RESERVED: u8 = 0x70;
const CONTROL: u8 = 0x08;

/// Until either side ends it. `leaked` is called when a message has the value of a secret in it: it is not passed on,
/// and the connection ends.
pub(crate) async fn carry(
    client: Upgraded,
    upstream: Upgraded,
    seal: Option<Arc<Table>>,
    leaked: impl FnOnce(),
) {
    let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    let Some(table) = seal else { return tunnel(client, upstream).await };
    let (mut client_in, mut client_out) = io::split(client);
    let (mut upstream_in, mut upstream_out) = io::split(upstream);
    let out = async {
        let _ = io::copy(&mut client_in, &mut upstream_out).await;
        let _ = upstream_out.shutdown().await;
        // What the host still has to say is awaited.
        std::future::pending::<()>().await;
    };
    let back = async {
        let mut frames = Frames::new(table);
        let mut buffer = BytesMut::with_capacity(BUFFER);
        loop {
            buffer.reserve(BUFFER);
            match upstream_in.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
            let pass = frames.push(&buffer.split().freeze())?;
            if client_out.write_all(&pass).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        () = out => {}
        ended = back => {
            if let Err(Unfit::Leak) = ended {
                leaked();
            }
            let _ = client_out.shutdown().await;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    /// The value of a secret.
    Leak,
    /// No frame that a host may send: it could not be read.
    Malformed,
}

/// Reads the frames of a host. Bytes that may be the beginning of a secret are held back, with all that follow them,
/// also over the ends of frames: a message may be sent in many.
struct Frames {
    table: Arc<Table>,
    /// Messages, and the control frames in between.
    data: Stream,
    header: Vec<u8>,
    /// Bytes of the present frame that are still to come.
    left: u64,
    is_control: bool,
    held: BytesMut,
}

impl Frames {
    fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            data: Stream::default(),
            header: Vec::new(),
            left: 0,
            is_control: false,
            held: BytesMut::new(),
        }
    }

    /// What can be passed on.
    fn push(&mut self, bytes: &Bytes) -> Result<BytesMut, Unfit> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left == 0 {
                self.header.push(bytes[at]);
                at += 1;
                let whole = self.header_ended()?;
                if whole {
                    let header = std::mem::take(&mut self.header);
                    self.held.extend_from_slice(&header);
                }
                continue;
            }
            let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            let payload = bytes.slice(at..at + length);
            at += length;
            self.left -= length as u64;
            self.held.extend_from_slice(&payload);
            self.read(payload)?;
        }
        // Nothing is open: all of it is known to be clean.
        if self.data.is_holding() { Ok(BytesMut::new()) } else { Ok(self.held.split()) }
    }

    fn read(&mut self, payload: Bytes) -> Result<(), Unfit> {
        let mut found = false;
        // A control frame does not end what a message has begun.
        if self.is_control {
            found = self.table.is_in(&payload);
        } else {
            self.data.push(&self.table, payload, |_| found = true);
        }
        if found { Err(Unfit::Leak) } else { Ok(()) }
    }

    /// Whether the header is whole; then the length of what follows is known.
    fn header_ended(&mut self) -> Result<bool, Unfit> {
        let header = &self.header;
        if header[0] & RESERVED != 0 || header.get(1).is_some_and(|byte| byte & MASKED != 0) {
            return Err(Unfit::Malformed);
        }
        self.left = match (header.get(1), header.len()) {
            (Some(126), 4) => u64::from(u16::from_be_bytes([header[2], header[3]])),
            (Some(127), 10) => header[2..].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            (Some(126 | 127) | None, _) => return Ok(false),
            (Some(short), _) => u64::from(*short),
        };
        self.is_control = header[0] & CONTROL != 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Frames {
        let pair = (b"the-secret".to_vec(), b"token".to_vec());
        Frames::new(Arc::new(Table::new(vec![pair]).unwrap()))
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        match u8::try_from(payload.len()) {
            Ok(length @ 0..126) => [&[first, length], payload].concat(),
            _ => [&[first, 126], &u16::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat(),
        }
    }

    fn carried(bytes: &[u8], piece: usize) -> Result<Vec<u8>, Unfit> {
        let mut frames = frames();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            out.extend_from_slice(&frames.push(&Bytes::copy_from_slice(piece))?);
        }
        Ok(out)
    }

    #[test]
    fn clean_frames_pass_as_they_are() {
        let bytes =
            [frame(0x81, b"the-sec tail"), frame(0x82, &[b't'; 400]), frame(0x89, b""), frame(0x81, b"x")]
                .concat();
        for piece in [1, 3, 100, 10_000] {
            assert_eq!(carried(&bytes, piece).unwrap(), bytes);
        }
    }

    #[test]
    fn a_secret_does_not_pass_in_one_frame_or_in_many() {
        let whole = frame(0x81, b"a the-secret b");
        let ping = frame(0x89, b"hi");
        let split = [frame(0x01, b"the-s"), ping, frame(0x80, b"ecret")].concat();
        let control = frame(0x89, b"the-secret");
        for bytes in [whole, split, control] {
            for piece in [1, 4, 1000] {
                assert_eq!(carried(&bytes, piece), Err(Unfit::Leak));
            }
        }
        let mut frames = frames();
        assert!(frames.push(&Bytes::from(frame(0x01, b"the-s"))).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_ends_it() {
        assert_eq!(carried(&frame(0xc1, b"compressed"), 100), Err(Unfit::Malformed));
        assert_eq!(carried(&[0x81, 0x81, 0, 0, 0, 0, 0], 100), Err(Unfit::Malformed));
    }
}
