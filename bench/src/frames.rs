//! Counts the output in an exec WebSocket without keeping it: what a client costs must not be taken for the server.
//!
//! Reads the frames of RFC 6455 as a server sends them, unmasked, in whatever pieces they come. Knows no more of them
//! than it needs: the kind byte at the start of each message, and the exit code.

use anyhow::{bail, ensure};
use warren_api::exec_frame;

const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const FIRST_CONTROL: u8 = 0x8;
/// Longest head: two bytes and a length of eight.
const HEAD: usize = 10;
const EXIT_CODE: usize = 4;

#[derive(Default)]
pub(crate) struct Counter {
    head: [u8; HEAD],
    in_head: usize,
    /// Bytes of the present frame that are still to come.
    left: u64,
    opcode: u8,
    /// First byte of the present message; none before it has come.
    kind: Option<u8>,
    code: Vec<u8>,
    output: u64,
}

// === impl Counter ===

impl Counter {
    pub(crate) fn output(&self) -> u64 {
        self.output
    }

    /// Takes what was read; the exit code once it has come.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> anyhow::Result<Option<i32>> {
        while let Some(&first) = bytes.first() {
            if self.left == 0 {
                self.head[self.in_head] = first;
                self.in_head += 1;
                bytes = &bytes[1..];
                self.head_taken()?;
                continue;
            }
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(count);
            (bytes, self.left) = (rest, self.left - count as u64);
            if let Some(code) = self.payload(payload)? {
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    /// Starts a frame when its head is complete.
    fn head_taken(&mut self) -> anyhow::Result<()> {
        let head = &self.head[..self.in_head];
        let (Some(&first), Some(&second)) = (head.first(), head.get(1)) else { return Ok(()) };
        ensure!(second & 0x80 == 0, "the server sent a masked frame");
        let length = match (second & 0x7f, head.len()) {
            (126, 4) => u64::from(u16::from_be_bytes([head[2], head[3]])),
            (127, HEAD) => head[2..].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            (126 | 127, _) => return Ok(()),
            (length, _) => u64::from(length),
        };
        (self.in_head, self.left, self.opcode) = (0, length, first & 0x0f);
        match self.opcode {
            BINARY => self.kind = None,
            CLOSE => bail!("the server closed the stream without an exit code"),
            CONTINUATION => {}
            opcode => ensure!(opcode > FIRST_CONTROL, "the server sent a frame of kind {opcode}"),
        }
        Ok(())
    }

    fn payload(&mut self, payload: &[u8]) -> anyhow::Result<Option<i32>> {
        if self.opcode >= FIRST_CONTROL {
            return Ok(None);
        }
        let content = match self.kind {
            Some(_) => payload,
            None => {
                self.kind = payload.first().copied();
                &payload[1..]
            }
        };
        match self.kind {
            Some(exec_frame::STDOUT) => self.output += content.len() as u64,
            Some(exec_frame::EXIT) => {
                self.code.extend_from_slice(content);
                ensure!(
                    self.code.len() <= EXIT_CODE,
                    "the server sent an exit code of {} bytes",
                    self.code.len()
                );
                return Ok(<[u8; EXIT_CODE]>::try_from(self.code.as_slice()).ok().map(i32::from_be_bytes));
            }
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every head length, a message in two frames, a ping between them, the exit code.
    fn stream() -> Vec<u8> {
        let mut bytes = vec![0x82, 3, 1, b'h', b'i', 0x82, 1, 4];
        bytes.extend([0x02, 126, 0x01, 0x00, 1]);
        bytes.extend([b'x'; 255]);
        bytes.extend([0x89, 2, 1, 1]);
        bytes.extend([0x80, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        bytes.extend(vec![b'y'; 0x10000]);
        bytes.extend([0x82, 4, 2, b'e', b'r', b'r', 0x82, 0]);
        bytes.extend([0x82, 5, 3, 0, 0, 1, 2]);
        bytes
    }

    #[test]
    fn output_is_counted_however_the_stream_is_cut() {
        for size in [1, 2, 3, 7, 300, usize::MAX] {
            let mut counter = Counter::default();
            let codes: Vec<i32> =
                stream().chunks(size).filter_map(|piece| counter.take(piece).unwrap()).collect();
            assert_eq!(
                (codes.as_slice(), counter.output()),
                ([258].as_slice(), 2 + 255 + 0x10000),
                "cut at {size}"
            );
        }
    }

    #[test]
    fn an_end_without_a_code_is_an_error() {
        assert!(Counter::default().take(&[0x82, 2, 1, b'a', 0x88, 0]).is_err());
        assert!(Counter::default().take(&[0x82, 0x81, 0, 0, 0, 0, 1]).is_err());
    }
}
