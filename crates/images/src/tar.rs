//! Reads tar: the entries of a stream one after the other, and their data in the pieces in which it comes.
//!
//! Our own because what it reads is hostile: every header is bounded before it is kept, a name is bytes and is given as
//! it is written, and a number that does not fit is an error. Ustar, old GNU and PAX are read, as Go's `archive/tar`
//! (which wrote nearly every layer there is) reads them.

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead, ErrorKind};

use self::header::{BLOCK, Header};
use self::pax::Pax;
use self::sparse::Piece;
use crate::ImageError;
use crate::error::shown;

/// A header that describes another: long names, PAX records. Go takes as much.
const LONGEST_HEADER: u64 = 1 << 20;
/// Headers that may describe one entry.
const MOST_HEADERS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// Character or block.
    Device,
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// As it is written; what it may name is the reader's to check.
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Of the file, holes included.
    pub(crate) size: u64,
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data belongs, for a file with holes.
    pub(crate) pieces: Option<Vec<Piece>>,
}

pub(crate) struct Reader<R> {
    input: R,
    /// Of the current entry's data, not yet consumed.
    remaining: u64,
    padding: u64,
    ended: bool,
}

// === impl Reader ===

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, remaining: 0, padding: 0, ended: false }
    }

    /// The next entry; what is left of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut pax = Pax::default();
        let mut name = None;
        let mut link = None;
        for _ in 0..MOST_HEADERS {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.type_flag() {
                b'x' => pax.read(&self.description(&header)?)?,
                // Of everything that follows. Nothing that makes layers writes one that matters, and engines pass it over.
                b'g' => drop(self.description(&header)?),
                b'L' => name = Some(until_nul(self.description(&header)?)),
                b'K' => link = Some(until_nul(self.description(&header)?)),
                _ => return self.entry(&header, pax, name, link).map(Some),
            }
        }
        Err(broken("an entry has too many headers"))
    }

    /// A piece of the current entry's data, empty at its end. See [`Reader::consume`].
    pub(crate) fn data(&mut self) -> Result<&[u8], ImageError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let piece = self.input.fill_buf().map_err(read_error)?;
        if piece.is_empty() {
            return Err(broken("a layer ends within a file"));
        }
        let length =
            usize::try_from(self.remaining).map_or(piece.len(), |remaining| remaining.min(piece.len()));
        Ok(&piece[..length])
    }

    pub(crate) fn consume(&mut self, length: usize) {
        debug_assert!(length as u64 <= self.remaining, "more is consumed than was given");
        self.remaining -= length as u64;
        self.input.consume(length);
    }

    /// Reads what follows the last entry, so that the stream's own checks see its end.
    pub(crate) fn drain(mut self) -> Result<R, ImageError> {
        loop {
            match self.input.fill_buf().map_err(read_error)?.len() {
                0 => return Ok(self.input),
                length => self.input.consume(length),
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        self.skip(self.remaining)?;
        self.remaining = 0;
        self.skip_padding()?;
        if self.ended || self.input.fill_buf().map_err(read_error)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(read_error)?;
        if block == [0; BLOCK] {
            self.ended = true;
            return Ok(None);
        }
        Header::new(block).map(Some)
    }

    /// The whole data of a header that describes another.
    fn description(&mut self, header: &Header) -> Result<Vec<u8>, ImageError> {
        let size = header.size()?;
        if size > LONGEST_HEADER {
            return Err(ImageError::TooLarge(format!("a header of an entry has {size} bytes")));
        }
        self.start(size);
        let mut data = Vec::new();
        loop {
            match self.data()? {
                [] => return Ok(data),
                piece => data.extend_from_slice(piece),
            }
            let read = data.len() as u64;
            let piece = usize::try_from(read - (size - self.remaining)).unwrap_or_default();
            self.consume(piece);
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        name: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
    ) -> Result<Entry, ImageError> {
        let name = pax.name.or(name).unwrap_or_else(|| header.name());
        let kind = match header.type_flag() {
            b'0' | b'7' | b'S' => Kind::File,
            // Before there was a kind for directories, a slash at the end said it.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let (name, other) = (shown(&name), char::from(other));
                return Err(ImageError::Unsupported(format!(
                    "{name} is an entry of the unknown kind {other:?}"
                )));
            }
        };
        // The other kinds have no data, whatever size they write: as Go has it.
        let stored = if kind == Kind::File { pax.size.map_or_else(|| header.size(), Ok)? } else { 0 };
        self.start(stored);
        let mut entry = Entry {
            name,
            link: pax.link.or(link).unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok)?,
            size: stored,
            attributes: pax.attributes,
            pieces: None,
        };
        if kind == Kind::File {
            let holes = if header.type_flag() == b'S' {
                Some((sparse::read_old(header, &mut self.input)?, header.real_size()?))
            } else if pax.sparse.is_version_1() {
                let real_size = pax.sparse.real_size.ok_or_else(|| broken("a sparse file says no size"))?;
                Some((sparse::read_version_1(self)?, real_size))
            } else {
                pax.sparse.pieces()?
            };
            if let Some((pieces, real_size)) = holes {
                sparse::check(&pieces, real_size, self.remaining)?;
                entry.size = real_size;
                entry.pieces = Some(pieces);
                if let Some(name) = pax.sparse.name {
                    entry.name = name;
                }
            }
        }
        Ok(entry)
    }

    fn start(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// What fills up the last block of an entry. Some who write layers (umoci does) leave it out behind the last entry, and
    /// engines do without.
    fn skip_padding(&mut self) -> Result<(), ImageError> {
        while self.padding > 0 {
            let piece = self.input.fill_buf().map_err(read_error)?.len();
            if piece == 0 {
                self.padding = 0;
                break;
            }
            let piece = usize::try_from(self.padding).map_or(piece, |padding| padding.min(piece));
            self.input.consume(piece);
            self.padding -= piece as u64;
        }
        Ok(())
    }

    fn skip(&mut self, mut length: u64) -> Result<(), ImageError> {
        while length > 0 {
            let piece = self.input.fill_buf().map_err(read_error)?.len();
            if piece == 0 {
                return Err(broken("a layer ends within an entry"));
            }
            let piece = usize::try_from(length).map_or(piece, |length| length.min(piece));
            self.input.consume(piece);
            length -= piece as u64;
        }
        Ok(())
    }
}

/// Errors of what is below travel inside of those of `io`, and come out as they went in.
fn read_error(error: io::Error) -> ImageError {
    match error.kind() {
        ErrorKind::UnexpectedEof if error.get_ref().is_none() => broken("a layer ends within an entry"),
        _ => match error.downcast::<ImageError>() {
            Ok(ours) => ours,
            Err(error) => ImageError::io("read a layer", error),
        },
    }
}

fn broken(why: &str) -> ImageError {
    ImageError::Broken(why.to_owned())
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}
