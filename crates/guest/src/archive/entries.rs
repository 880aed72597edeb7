//! Reading a tar stream entry by entry, with a bound on everything it makes us remember.
//!
//! Understood are the old format, ustar, and the long names of GNU and POSIX. Sparse files are refused.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};
use warren_guest_api::files::MAX_PATH_BYTES;
use warren_types::Error;
use warren_types::error::Result;

const BLOCK: usize = 512;
/// Largest set of POSIX extended attributes of one entry.
const MAX_EXTENSIONS: u64 = 64 * 1024;

pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: EntryType,
    pub(super) mode: u32,
    pub(super) mtime: Option<i64>,
    pub(super) size: u64,
}

/// What the entries before one say about it.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
}

pub(super) struct Entries<R> {
    input: R,
    /// What is left of the last entry's content and padding.
    content: u64,
    padding: u64,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, content: 0, padding: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip(self.content + self.padding)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|_| broken("a size that is not a number"))?;
            self.set_size(if is_extension(kind) { size } else { extension.size.unwrap_or(size) })?;
            match kind {
                EntryType::GNULongName => extension.name = Some(self.long_name()?),
                EntryType::GNULongLink => extension.link = Some(self.long_name()?),
                EntryType::XHeader => extension.take(&self.remember(MAX_EXTENSIONS)?)?,
                EntryType::XGlobalHeader => {}
                EntryType::GNUSparse => {
                    return Err(Error::invalid("the archive has sparse files; make it without `--sparse`"));
                }
                kind => {
                    let link = header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
                    return Ok(Some(Entry {
                        name: extension.name.unwrap_or_else(|| header.path_bytes().into_owned()),
                        link: extension.link.unwrap_or(link),
                        kind,
                        mode: header.mode().unwrap_or(0o644),
                        mtime: extension
                            .mtime
                            .or_else(|| header.mtime().ok().and_then(|time| i64::try_from(time).ok())),
                        size: self.content,
                    }));
                }
            }
        }
    }

    /// Content of the entry returned last; nothing at its end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut into[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= count as u64;
        Ok(count)
    }

    fn set_size(&mut self, size: u64) -> Result<()> {
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        size.checked_add(self.padding).map(drop).ok_or_else(|| broken("a size out of range"))
    }

    /// `None` at the end, marked by an empty block or not at all.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ended()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(ended()),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let own: u32 = block[148..156].iter().map(|&byte| u32::from(byte)).sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(broken("a header with a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(count), &mut io::sink()).map_err(|_| ended())?;
        self.content = 0;
        self.padding = 0;
        if skipped == count { Ok(()) } else { Err(ended()) }
    }

    /// Reads all of the entry, if it is not longer than that.
    fn remember(&mut self, most: u64) -> Result<Vec<u8>> {
        if self.content > most {
            return Err(broken("names or attributes longer than is reasonable"));
        }
        let mut bytes = vec![0; usize::try_from(self.content).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read(&mut bytes[filled..]).map_err(|_| ended())?;
        }
        Ok(bytes)
    }

    fn long_name(&mut self) -> Result<Vec<u8>> {
        let mut name = self.remember(MAX_PATH_BYTES as u64 + 1)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

impl Extension {
    fn take(&mut self, attributes: &[u8]) -> Result<()> {
        for attribute in PaxExtensions::new(attributes) {
            let attribute = attribute.map_err(|_| broken("attributes that are not well-formed"))?;
            let value = attribute.value_bytes();
            let text =
                || std::str::from_utf8(value).map_err(|_| broken("attributes that are not well-formed"));
            match attribute.key_bytes() {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    self.size = Some(text()?.parse().map_err(|_| broken("a size that is not a number"))?);
                }
                b"mtime" => self.mtime = text()?.split('.').next().and_then(|seconds| seconds.parse().ok()),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(Error::invalid("the archive has sparse files; make it without `--sparse`"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_extension(kind: EntryType) -> bool {
    kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
}

fn broken(what: &str) -> Error {
    Error::invalid(format!("this is not a tar archive, or a damaged one: it has {what}"))
}

pub(super) fn ended() -> Error {
    Error::invalid("the archive ended early")
}
