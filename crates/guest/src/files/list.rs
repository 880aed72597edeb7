//! What is in a folder: read and sorted as a whole, packed close, and written as JSON lines while they are sent.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_guest_api::files::{Entry, MAX_LIST_BYTES, MAX_LIST_ENTRIES};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use super::errors::explain;
use crate::paths::GuestPath;
use crate::reply::{Chunk, Source};

/// Memory that listings may take together while they are sent, in KiB: two of the largest.
const MAX_MEMORY_KIB: usize = 2 * (MAX_LIST_BYTES + MAX_LIST_ENTRIES * size_of::<Line>()) / 1024;
/// Listings up to this size are not counted.
const SMALL: usize = 64 * 1024;
/// Lines are sent in pieces of about this size.
const PIECE: usize = 64 * 1024;

/// Counts the memory of listings that are being sent.
pub(crate) struct Listings(Arc<Semaphore>);

/// A folder's entries by name.
pub(crate) struct Listing {
    /// The folder, with a slash at its end.
    folder: Vec<u8>,
    /// All names, one after the other.
    names: Vec<u8>,
    lines: Vec<Line>,
    sent: usize,
    place: Option<OwnedSemaphorePermit>,
}

struct Line {
    /// Where its name is in `names`.
    start: u32,
    length: u16,
    is_dir: bool,
    size: u64,
}

impl Default for Listings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_MEMORY_KIB)))
    }
}

impl Listings {
    /// Makes room for a listing until it has been sent.
    pub(crate) fn hold(&self, mut listing: Listing) -> Result<Listing> {
        let size = listing.names.capacity() + listing.lines.capacity() * size_of::<Line>();
        if size > SMALL {
            let kib = u32::try_from(size / 1024).unwrap_or(u32::MAX);
            let place = Arc::clone(&self.0).try_acquire_many_owned(kib);
            listing.place = Some(place.map_err(|_| {
                let message = "several large folders are being listed; wait until that is done and try again";
                Error::new(ErrorKind::LimitReached, message)
            })?);
        }
        Ok(listing)
    }
}

impl Listing {
    pub(crate) fn read(path: &GuestPath) -> Result<Self> {
        let failed = |error: io::Error| explain(&error, path);
        let mut folder = path.as_path().as_os_str().as_bytes().to_vec();
        if !folder.ends_with(b"/") {
            folder.push(b'/');
        }
        let mut listing = Self { folder, names: Vec::new(), lines: Vec::new(), sent: 0, place: None };
        for entry in fs::read_dir(path.as_path()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // It may have gone since; then it is not in the folder.
            let Ok(meta) = entry.metadata() else { continue };
            if !listing.add(entry.file_name().as_bytes(), &meta) {
                let message = format!(
                    "{path} has more than {MAX_LIST_ENTRIES} entries, or their names are longer than {MAX_LIST_BYTES} bytes \
                     together; use a command such as `find` in it"
                );
                return Err(Error::new(ErrorKind::TooLarge, message));
            }
        }
        let Self { names, lines, .. } = &mut listing;
        lines.sort_unstable_by(|a, b| a.name(names).cmp(b.name(names)));
        names.shrink_to_fit();
        lines.shrink_to_fit();
        Ok(listing)
    }

    /// Whether there was room for it.
    fn add(&mut self, name: &[u8], meta: &fs::Metadata) -> bool {
        let fits = self.lines.len() < MAX_LIST_ENTRIES && self.names.len() + name.len() <= MAX_LIST_BYTES;
        let (Ok(start), Ok(length)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return false;
        };
        if fits {
            self.names.extend_from_slice(name);
            self.lines.push(Line { start, length, is_dir: meta.is_dir(), size: meta.len() });
        }
        fits
    }
}

impl Line {
    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        &names[self.start as usize..][..usize::from(self.length)]
    }
}

impl Source for Listing {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        let mut piece = BytesMut::with_capacity(PIECE + PIECE / 8);
        while let Some(line) = self.lines.get(self.sent)
            && piece.len() < PIECE
        {
            self.sent += 1;
            let name = line.name(&self.names);
            let path = [&self.folder, name].concat();
            let entry = Entry {
                name: String::from_utf8_lossy(name).into_owned(),
                path: String::from_utf8_lossy(&path).into_owned(),
                encoded_path: super::unless_text(&path),
                is_dir: line.is_dir,
                size: line.size,
            };
            if let Err(error) = serde_json::to_writer((&mut piece).writer(), &entry) {
                return Poll::Ready(Some(Err(io::Error::other(error))));
            }
            piece.put_u8(b'\n');
        }
        Poll::Ready((!piece.is_empty()).then(|| Ok(piece.freeze().into())))
    }
}
