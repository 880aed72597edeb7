//! WebSockets after their request: carried both ways, and what a host sends is read where it could hold a secret.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{self, AsyncReadExt, AsyncWriteExt};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::io::tunnel;
use super::live::Live;
use super::replace::Stream;
use super::secrets::Substitutes;

const BUFFER: usize = 16 * 1024;
const MASKED: u8 = 0x80;
const RESERVED: u8 = 0x70;
const CONTROL: u8 = 0x08;
const LAST: u8 = 0x80;
/// Bytes of a control frame, as the protocol has it.
const MAX_CONTROL: u64 = 125;
/// Heads of frames and control frames that may stand within what may be the beginning of a secret, and wait with it. A host that
/// sends more of them does so on purpose.
const MAX_BETWEEN: usize = 64 * 1024;
/// Bytes of heads that each held byte of a message may have besides, when each comes in a frame of its own.
const HEADS_EACH: usize = 8;

/// Until either side ends it. `seal`: what the host says is read. `leaked` is called when a message has the value of a secret
/// in it: it is not passed on, and the connection ends.
pub(crate) async fn carry(client: Upgraded, upstream: Upgraded, seal: Option<Live>, leaked: impl FnOnce()) {
    let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    let Some(mut live) = seal else { return tunnel(client, upstream).await };
    let (mut client_in, mut client_out) = io::split(client);
    let (mut upstream_in, mut upstream_out) = io::split(upstream);
    let out = async {
        let _ = io::copy(&mut client_in, &mut upstream_out).await;
        let _ = upstream_out.shutdown().await;
        // What the host still has to say is awaited.
        std::future::pending::<()>().await;
    };
    let back = async {
        let mut frames = Frames::default();
        let mut buffer = BytesMut::with_capacity(BUFFER);
        loop {
            buffer.reserve(BUFFER);
            match upstream_in.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
            // When there is nothing to look for any more, what was is.
            frames.substitutes = live.current().or(frames.substitutes);
            let pass = frames.push(&buffer.split().freeze())?;
            let passed = async {
                client_out.write_all(&pass).await?;
                client_out.flush().await
            };
            if passed.await.is_err() {
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
    /// No frame that a host may send, or more than is kept: it could not be read.
    Malformed,
}

/// Reads the frames of a host. Bytes that may be the beginning of a secret are held back, with all that follow them,
/// also over the ends of frames: a message may be sent in many. The end of a message lets them go, or a program that
/// waits for one would wait for the next.
#[derive(Default)]
struct Frames {
    substitutes: Option<Arc<Substitutes>>,
    /// Of the present message, and of the present control frame, which may stand in the middle of one.
    data: Stream,
    control: Stream,
    header: Vec<u8>,
    /// Bytes of the present frame that are still to come.
    left: u64,
    is_control: bool,
    is_last: bool,
    /// What has come and is not passed on.
    held: BytesMut,
    /// Where in `held` the newest pieces of the message are: begin and length. Those before the open end are dropped.
    pieces: VecDeque<(usize, usize)>,
    /// Where in `held` the present control frame's payload begins, while its end is open.
    control_at: Option<usize>,
}

impl Frames {
    /// What can be passed on.
    fn push(&mut self, bytes: &Bytes) -> Result<BytesMut, Unfit> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left == 0 {
                self.header.push(bytes[at]);
                at += 1;
                if self.header_ended()? {
                    self.held.extend_from_slice(&self.header);
                    self.header.clear();
                    self.frame_ended();
                }
                continue;
            }
            let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            self.read(&bytes.slice(at..at + length))?;
            at += length;
            self.left -= length as u64;
            self.frame_ended();
        }
        let free = self.release();
        if self.held.len() > MAX_BETWEEN + self.data.holds() * HEADS_EACH {
            return Err(Unfit::Malformed);
        }
        Ok(free)
    }

    fn read(&mut self, payload: &Bytes) -> Result<(), Unfit> {
        let (begin, length) = (self.held.len(), payload.len());
        self.held.extend_from_slice(payload);
        let mut found = false;
        if let Some(substitutes) = &self.substitutes {
            let stream = if self.is_control { &mut self.control } else { &mut self.data };
            stream.push(&substitutes.table, payload, |_| found = true);
        }
        if found {
            return Err(Unfit::Leak);
        }
        if self.is_control {
            self.control_at = self.control_at.or(Some(begin)).filter(|_| self.control.holds() > 0);
        } else {
            self.pieces.push_back((begin, length));
            self.drop_pieces();
        }
        Ok(())
    }

    /// Forgets the pieces that the open end of the message does not reach back to.
    fn drop_pieces(&mut self) {
        let open = self.data.holds();
        let mut whole: usize = self.pieces.iter().map(|(_, length)| length).sum();
        while let Some((_, length)) = self.pieces.front().filter(|(_, length)| whole - length >= open) {
            whole -= length;
            self.pieces.pop_front();
        }
        if let Some((begin, length)) = self.pieces.front_mut() {
            let clean = whole - open;
            *begin += clean;
            *length -= clean;
        }
    }

    /// All before the first byte that may begin a secret.
    fn release(&mut self) -> BytesMut {
        let open = self.pieces.front().map(|(begin, _)| *begin);
        let end = [open, self.control_at].into_iter().flatten().min().unwrap_or(self.held.len());
        for (begin, _) in &mut self.pieces {
            *begin -= end;
        }
        self.control_at = self.control_at.map(|begin| begin - end);
        self.held.split_to(end)
    }

    /// Forgets what a message that is over, or a control frame, has begun.
    fn frame_ended(&mut self) {
        if self.left > 0 {
            return;
        }
        if self.is_control {
            self.control = Stream::default();
            self.control_at = None;
        } else if self.is_last {
            self.data = Stream::default();
            self.pieces.clear();
        }
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
        if self.is_control && self.left > MAX_CONTROL {
            return Err(Unfit::Malformed);
        }
        self.is_last = header[0] & LAST != 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Frames {
        let pair = (b"the-secret".to_vec(), b"token".to_vec());
        let table = super::super::replace::Table::new(vec![pair]).unwrap();
        let substitutes = Some(Arc::new(Substitutes { table, names: vec!["KEY".into()], in_names: None }));
        Frames { substitutes, ..Frames::default() }
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
        // The head of the frame may go; what could be the beginning of the secret does not.
        let passed = frames.push(&Bytes::from(frame(0x01, b"the-s"))).unwrap();
        assert!(passed.len() <= 2, "{passed:?}");
    }

    #[test]
    fn only_what_may_begin_a_secret_waits() {
        let mut frames = frames();
        // One message of frames that all end like the secret begins.
        for first in [0x01].into_iter().chain([0x00; 5000]) {
            frames.push(&Bytes::from(frame(first, b"t"))).unwrap();
            assert!(frames.held.len() <= 3 && frames.pieces.len() <= 1);
        }
        // And the end of a message lets go of it.
        assert!(frames.push(&Bytes::from(frame(0x80, b"the-"))).unwrap().ends_with(b"the-"));
    }

    #[test]
    fn a_beginning_that_is_never_ended_does_not_hold_all_that_comes_after_it() {
        for between in [frame(0x89, &[b'x'; 125]), frame(0x00, b"")] {
            let mut frames = frames();
            frames.push(&Bytes::from(frame(0x01, b"the-"))).unwrap();
            let many = Bytes::from(between.repeat(100));
            let ended = (0..1000).any(|_| frames.push(&many) == Err(Unfit::Malformed));
            assert!(ended && frames.held.len() < 2 * MAX_BETWEEN, "{}", frames.held.len());
        }
    }

    #[test]
    fn what_cannot_be_read_ends_it() {
        assert_eq!(carried(&frame(0xc1, b"compressed"), 100), Err(Unfit::Malformed));
        assert_eq!(carried(&[0x81, 0x81, 0, 0, 0, 0, 0], 100), Err(Unfit::Malformed));
    }
}
