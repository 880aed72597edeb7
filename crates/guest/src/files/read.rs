//! Reading a file: the whole of it or one range, piece by piece, as fast as the other end takes it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::oneshot;
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use super::errors::explain;
use crate::buffer::{self, Buffer};
use crate::paths::GuestPath;
use crate::reply::{Chunk, Source};
use crate::workers::Workers;

/// Files whose size says nothing, such as those of `/proc`, are read whole, up to this size.
const MAX_UNSIZED: u64 = 16 * 1024 * 1024;

/// A file that is open for reading.
pub(crate) struct Opened {
    pub(crate) size: u64,
    content: Content,
}

enum Content {
    OnDisk(File),
    Read(Bytes),
}

/// Opens a regular file. Anything else is refused before it is opened, since that alone can have effects or block.
pub(crate) fn open(path: &GuestPath) -> Result<Opened> {
    let failed = |error: io::Error| explain(&error, path);
    super::check_is_file(&fs::metadata(path.as_path()).map_err(failed)?, path)?;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path.as_path()).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    super::check_is_file(&meta, path)?;
    if has_true_size(&meta) {
        return Ok(Opened { size: meta.len(), content: Content::OnDisk(file) });
    }
    let mut bytes = Vec::new();
    file.take(MAX_UNSIZED + 1).read_to_end(&mut bytes).map_err(|error| match error.raw_os_error() {
        // Not a broken disk: some of these cannot be read from their beginning, such as the memory of a process.
        Some(libc::EIO) => Error::invalid(format!("{path} cannot be read as a file")),
        _ => failed(error),
    })?;
    if bytes.len() as u64 > MAX_UNSIZED {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{path} does not say how long it is and has no end"),
        ));
    }
    Ok(Opened { size: bytes.len() as u64, content: Content::Read(bytes.into()) })
}

/// Files made up by the kernel claim to be empty or one page long, and occupy nothing.
fn has_true_size(meta: &Metadata) -> bool {
    meta.blocks() > 0 || meta.len() > buffer::SIZE as u64
}

impl Opened {
    /// The bytes of that range, which lies within the file.
    pub(crate) fn stream(self, range: Range<u64>, workers: Workers) -> FileStream {
        let (file, rest) = match self.content {
            Content::OnDisk(file) => (Some(Arc::new(file)), Bytes::new()),
            Content::Read(bytes) => {
                let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                (None, bytes.slice(index(range.start)..index(range.end)))
            }
        };
        FileStream { file, rest, at: range.start, end: range.end, coming: None, workers }
    }
}

/// A stretch of a file as a body. One piece is always being read ahead.
pub(crate) struct FileStream {
    file: Option<Arc<File>>,
    /// All of it, where there is no file.
    rest: Bytes,
    /// Where the next piece to be read begins.
    at: u64,
    end: u64,
    coming: Option<oneshot::Receiver<io::Result<Bytes>>>,
    workers: Workers,
}

impl FileStream {
    fn read_ahead(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.at < self.end && self.coming.is_none()) else {
            return;
        };
        let (file, offset) = (Arc::clone(file), self.at);
        let length = usize::try_from(self.end - offset).unwrap_or(usize::MAX).min(buffer::SIZE);
        self.at += length as u64;
        self.coming = Some(self.workers.run(move || {
            let mut buffer = Buffer::take();
            // A file that became shorter meanwhile breaks the stream off: its length has been promised.
            file.read_exact_at(&mut buffer[..length], offset)?;
            Ok(buffer.freeze(length))
        }));
    }
}

impl Source for FileStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        self.read_ahead();
        if let Some(coming) = &mut self.coming {
            let bytes = ready!(Pin::new(coming).poll(context));
            self.coming = None;
            self.read_ahead();
            let bytes = bytes.unwrap_or_else(|_| Err(io::Error::other("the file could not be read")));
            return Poll::Ready(Some(bytes.map(Chunk::from)));
        }
        let rest = std::mem::take(&mut self.rest);
        Poll::Ready((!rest.is_empty()).then(|| Ok(rest.into())))
    }
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// No range, several, or something that is not one: these get the whole file.
    Everything,
    Part(Range<u64>),
    Unsatisfiable,
}

pub(crate) fn parse_range(header: Option<&[u8]>, size: u64) -> Asked {
    let spec = header
        .and_then(|header| std::str::from_utf8(header).ok())
        .and_then(|text| text.strip_prefix("bytes="));
    let Some((first, last)) = spec.and_then(|spec| spec.trim().split_once('-')) else {
        return Asked::Everything;
    };
    let number =
        |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let range = match (first, last) {
        ("", last) => match number(last) {
            Some(count) => size.saturating_sub(count)..size,
            None => return Asked::Everything,
        },
        (first, "") => match number(first) {
            Some(first) => first..size,
            None => return Asked::Everything,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
            _ => return Asked::Everything,
        },
    };
    if range.is_empty() { Asked::Unsatisfiable } else { Asked::Part(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        let asked = |header: &str| parse_range(Some(header.as_bytes()), 100);
        assert_eq!(parse_range(None, 100), Asked::Everything);
        for (header, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=10-", 10..100),
            ("bytes=-5", 95..100),
            ("bytes=-500", 0..100),
            ("bytes=90-900", 90..100),
        ] {
            assert_eq!(asked(header), Asked::Part(range), "{header}");
        }
        for header in [
            "bytes=0-1,5-6",
            "bytes=5-1",
            "bytes=",
            "bytes=-",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=a-b",
            "bytes=1-99999999999999999999",
        ] {
            assert_eq!(asked(header), Asked::Everything, "{header}");
        }
        for header in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert_eq!(asked(header), Asked::Unsatisfiable, "{header}");
        }
        assert_eq!(parse_range(Some(b"bytes=0-"), 0), Asked::Unsatisfiable);
    }
}
