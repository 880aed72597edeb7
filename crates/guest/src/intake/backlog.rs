//! What a sender has sent and nobody has taken yet: its frames as they came, never more than the window.

use std::collections::VecDeque;

use warren_guest_api::frame::{HEADER, MAX_PAYLOAD, STDIN, STDIN_END};
use warren_guest_api::input::WINDOW;

/// Taken bytes are granted in heaps of at least this many, as long as the sender can go on without.
const HEAP: usize = WINDOW / 8;
/// Memory that is kept for the next bytes once all have been taken.
const KEPT: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    /// Bytes at the front that are what is left of the frame under way.
    payload: usize,
    /// Bytes that were taken and not granted again yet.
    taken: usize,
    /// The rest of a frame is being waited for.
    is_short: bool,
}

/// A frame of input that is all there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Its bytes are [`Backlog::payload`] from now on.
    Stdin,
    StdinEnd,
}

/// The sender sent more than it may, or what is no input.
#[derive(Debug, PartialEq, Eq)]
pub struct BrokenContract;

impl Backlog {
    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BrokenContract> {
        let length = self.bytes.len() + bytes.len();
        if length + self.taken > WINDOW {
            return Err(BrokenContract);
        }
        if length > self.bytes.capacity() {
            // Grows by doubling, but not beyond what there may be.
            let capacity = length.max((2 * self.bytes.capacity()).min(WINDOW));
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend(bytes);
        Ok(())
    }

    /// Goes on to the next frame if all of it is there. The payload of the last one must have been taken.
    pub fn next_frame(&mut self) -> Result<Option<Next>, BrokenContract> {
        if self.payload > 0 {
            return Ok(None);
        }
        let (next, length) = match self.head()? {
            Some((next, length)) if self.bytes.len() >= HEADER + length => (next, length),
            _ => {
                self.is_short = !self.bytes.is_empty();
                return Ok(None);
            }
        };
        self.is_short = false;
        self.advance(HEADER);
        self.payload = length;
        Ok(Some(next))
    }

    /// Kind and payload length of the frame at the front.
    fn head(&self) -> Result<Option<(Next, usize)>, BrokenContract> {
        let mut header = [0; HEADER];
        if self.bytes.len() < HEADER {
            return Ok(None);
        }
        for (to, from) in header.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        let [kind, a, b, c, d] = header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| BrokenContract)?;
        match kind {
            STDIN if length <= MAX_PAYLOAD => Ok(Some((Next::Stdin, length))),
            STDIN_END if length == 0 => Ok(Some((Next::StdinEnd, 0))),
            _ => Err(BrokenContract),
        }
    }

    /// Bytes of the frame under way, perhaps not all that are left of it; none once all have been taken.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let front = self.bytes.as_slices().0;
        &front[..front.len().min(self.payload)]
    }

    /// The first `count` bytes of [`Backlog::payload`] have been written.
    pub fn take(&mut self, count: usize) {
        let count = count.min(self.payload);
        self.payload -= count;
        self.advance(count);
    }

    fn advance(&mut self, count: usize) {
        drop(self.bytes.drain(..count));
        self.taken += count;
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT {
            self.bytes = VecDeque::new();
        }
    }

    /// Whether [`Backlog::grant`] has something.
    #[must_use]
    pub fn has_grant(&self) -> bool {
        self.taken >= HEAP || (self.is_short && self.taken > 0)
    }

    /// Bytes to grant, if that is due.
    pub fn grant(&mut self) -> Option<u32> {
        if !self.has_grant() {
            return None;
        }
        let bytes = u32::try_from(self.taken).ok()?;
        self.taken = 0;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;
    use warren_guest_api::frame::Frame;
    use warren_guest_api::input::Credit;

    use super::*;

    /// Sends `wire` as credit allows in pieces of at most `cut` bytes, and takes at most `sip` bytes at a time.
    fn pass(wire: &[u8], cut: usize, sip: usize) -> Vec<Frame> {
        let (mut credit, mut backlog, mut wire) = (Credit::default(), Backlog::default(), wire);
        let (mut frames, mut payload) = (Vec::new(), BytesMut::new());
        let mut stdin = false;
        loop {
            let piece = credit.spend(wire.len().min(cut));
            backlog.push(&wire[..piece]).unwrap();
            wire = &wire[piece..];
            let before = frames.len();
            loop {
                while !backlog.payload().is_empty() {
                    let count = backlog.payload().len().min(sip);
                    payload.extend_from_slice(&backlog.payload()[..count]);
                    backlog.take(count);
                }
                if std::mem::take(&mut stdin) {
                    frames.push(Frame::Stdin(payload.split().freeze()));
                }
                match backlog.next_frame().unwrap() {
                    Some(Next::Stdin) => stdin = true,
                    Some(Next::StdinEnd) => frames.push(Frame::StdinEnd),
                    None => break,
                }
            }
            let granted = backlog.grant();
            if let Some(bytes) = granted {
                credit.grant(bytes).unwrap();
            }
            if wire.is_empty() {
                return frames;
            }
            assert!(piece > 0 || granted.is_some() || frames.len() > before, "both sides wait for the other");
        }
    }

    fn encode(frames: &[Frame]) -> BytesMut {
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));
        wire
    }

    proptest! {
        #[test]
        fn frames_pass_unchanged_however_they_are_cut(
            sizes in proptest::collection::vec(0usize..5000, 0..20), cut in 1usize..10_000, sip in 1usize..3000,
        ) {
            let frame = |(number, size): (usize, &usize)| {
                Frame::Stdin(Bytes::from(vec![number.to_be_bytes()[7]; *size]))
            };
            let mut frames: Vec<Frame> = sizes.iter().enumerate().map(frame).collect();
            frames.push(Frame::StdinEnd);
            prop_assert_eq!(pass(&encode(&frames), cut, sip), frames);
        }
    }

    #[test]
    fn the_largest_frames_follow_each_other_without_a_standstill() {
        let large = |byte| Frame::Stdin(Bytes::from(vec![byte; MAX_PAYLOAD]));
        let frames = [large(1), Frame::Stdin(Bytes::from_static(b"x")), large(2), large(3), Frame::StdinEnd];
        for cut in [WINDOW, 1 << 20, 100_003] {
            assert!(pass(&encode(&frames), cut, 65_536) == frames, "pieces of {cut}");
        }
    }

    #[test]
    fn more_than_the_window_is_refused_and_memory_is_given_back() {
        let mut backlog = Backlog::default();
        let frame = Frame::Stdin(Bytes::from(vec![7; MAX_PAYLOAD])).to_bytes();
        backlog.push(&frame).unwrap();
        assert_eq!(backlog.push(&[STDIN]), Err(BrokenContract));
        assert!(backlog.bytes.capacity() <= WINDOW);
        assert_eq!(backlog.next_frame(), Ok(Some(Next::Stdin)));
        backlog.take(MAX_PAYLOAD);
        assert_eq!(backlog.push(&[STDIN]), Err(BrokenContract), "what was taken is not granted yet");
        assert_eq!(backlog.grant(), u32::try_from(WINDOW).ok());
        assert_eq!(backlog.bytes.capacity(), 0);
        backlog.push(&frame).unwrap();
    }

    #[test]
    fn what_is_no_input_is_refused_before_it_is_waited_for() {
        for bytes in [
            &[0xff, 0, 0, 0, 0][..],
            &[STDIN, 0xff, 0xff, 0xff, 0xff],
            &[STDIN_END, 0, 0, 0, 1],
            &Frame::Stdout(Bytes::from_static(b"x")).to_bytes(),
        ] {
            let mut backlog = Backlog::default();
            backlog.push(bytes).unwrap();
            assert_eq!(backlog.next_frame(), Err(BrokenContract), "{bytes:?}");
        }
    }
}
