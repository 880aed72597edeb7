//! Watches requests of HTTP/1 go by for two lengths in one head.
//!
//! A request with `Content-Length` and `Transfer-Encoding` is read in two ways by two servers. hyper takes the second
//! and drops the first without a word; what is sent on is framed anew, so nothing could be smuggled past it. It is
//! refused all the same: nobody sends such a thing in good faith. Nothing here decides where a request ends.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};

use super::io::Io;

/// As much of a head as hyper reads.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
const MAX_CHUNK_LINE: usize = 4096;

/// Set once a head had two lengths.
#[derive(Clone, Default)]
pub(crate) struct Ambiguous(Arc<AtomicBool>);

impl Ambiguous {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Framed<S> {
    inner: S,
    ambiguous: Ambiguous,
    watch: Watch,
}

enum Watch {
    /// The lines of a head so far.
    Head(Vec<u8>),
    /// Bytes of a body or a chunk that are still to come, and whether a chunk line comes after them.
    Skip { left: u64, chunked: bool },
    /// The line before a chunk.
    ChunkLine(Vec<u8>),
    /// Lines after the last chunk: how long the present one is.
    Trailers(usize),
    /// No HTTP any more, or nothing that hyper would read.
    Off,
}

impl<S: Io> Framed<S> {
    pub(crate) fn new(inner: S, ambiguous: Ambiguous) -> Self {
        Self { inner, ambiguous, watch: Watch::Head(Vec::new()) }
    }
}

impl Watch {
    fn see(&mut self, mut bytes: &[u8], ambiguous: &Ambiguous) {
        while !bytes.is_empty() {
            match self {
                Self::Off => return,
                Self::Skip { left, chunked } => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= step as u64;
                    bytes = &bytes[step..];
                    if *left == 0 {
                        *self = if *chunked { Self::ChunkLine(Vec::new()) } else { Self::Head(Vec::new()) };
                    }
                    continue;
                }
                _ => {}
            }
            let byte = bytes[0];
            bytes = &bytes[1..];
            self.line_byte(byte, ambiguous);
        }
    }

    fn line_byte(&mut self, byte: u8, ambiguous: &Ambiguous) {
        match self {
            Self::Head(head) => {
                // Empty lines before a request are skipped.
                if head.is_empty() && matches!(byte, b'\r' | b'\n') {
                    return;
                }
                head.push(byte);
                if head.ends_with(b"\n\n") || head.ends_with(b"\n\r\n") {
                    *self = after_head(head, ambiguous);
                } else if head.len() > MAX_HEAD {
                    *self = Self::Off;
                }
            }
            Self::ChunkLine(line) if byte == b'\n' => *self = after_chunk_line(line),
            Self::ChunkLine(line) => {
                line.push(byte);
                if line.len() > MAX_CHUNK_LINE {
                    *self = Self::Off;
                }
            }
            Self::Trailers(length) => match byte {
                b'\n' if *length == 0 => *self = Self::Head(Vec::new()),
                b'\n' => *length = 0,
                b'\r' => {}
                _ => *length += 1,
            },
            Self::Skip { .. } | Self::Off => {}
        }
    }
}

fn after_head(head: &[u8], ambiguous: &Ambiguous) -> Watch {
    let mut lines = head.split(|byte| *byte == b'\n');
    let is_connect = lines.next().is_some_and(|line| line.starts_with(b"CONNECT "));
    let (mut length, mut chunked, mut upgrade) = (None, false, false);
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = Some(std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok()));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }
    if length.is_some() && chunked {
        ambiguous.0.store(true, Ordering::Relaxed);
    }
    match (length, chunked) {
        _ if is_connect || upgrade => Watch::Off,
        (_, true) => Watch::ChunkLine(Vec::new()),
        (Some(None), _) => Watch::Off,
        (Some(Some(0)) | None, _) => Watch::Head(Vec::new()),
        (Some(Some(left)), _) => Watch::Skip { left, chunked: false },
    }
}

fn after_chunk_line(line: &[u8]) -> Watch {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match size {
        Some(0) => Watch::Trailers(0),
        // With the end of line after it.
        Some(size) => size.checked_add(2).map_or(Watch::Off, |left| Watch::Skip { left, chunked: true }),
        None => Watch::Off,
    }
}

impl<S: Io> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = &mut *self;
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.watch.see(&buf.filled()[before..], &this.ambiguous);
        Poll::Ready(Ok(()))
    }
}

impl<S: Io> AsyncWrite for Framed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambiguous(bytes: &str, piece: usize) -> bool {
        let (mut watch, flag) = (Watch::Head(Vec::new()), Ambiguous::default());
        for piece in bytes.as_bytes().chunks(piece) {
            watch.see(piece, &flag);
        }
        flag.is_set()
    }

    #[test]
    fn two_lengths_are_seen_in_every_request_of_a_connection() {
        let both = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-length: 3\r\n\r\n";
        let sized = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc\n\n";
        let chunked =
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4;x=y\r\na\n\nb\r\n0\r\nTrailer: x\r\n\r\n";
        let empty = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for piece in [1, 7, 1000] {
            assert!(ambiguous(both, piece));
            assert!(ambiguous(&format!("{sized}{chunked}{empty}{both}"), piece));
            assert!(!ambiguous(&format!("{sized}{chunked}{empty}{sized}"), piece));
        }
        // In a body it is no head.
        let body = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{both}", both.len());
        assert!(!ambiguous(&body, 1000));
    }
}
