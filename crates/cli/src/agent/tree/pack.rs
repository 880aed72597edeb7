//! A part of a folder as a tar stream, hashed on the way.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::root::Root;
use super::{Entry, Kind, Name, Scan, scan};

/// Copies of larger files are not kept.
const MAX_COPY: u64 = 1 << 20;
/// All copies of one run.
const MAX_COPIES: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) entries: BTreeMap<Name, Entry>,
    /// Files that could not be read, or were gone.
    pub(crate) left_out: Vec<String>,
}

/// Packs these names. `copies` is a folder in which what was sent is kept by its hash; `count` is told of every byte.
pub(crate) fn pack<'n>(
    scan: &Scan,
    names: impl IntoIterator<Item = &'n Name>,
    writer: impl Write,
    copies: Option<&Path>,
    count: &dyn Fn(usize),
) -> Result<Packed> {
    let root = Root::open(&scan.root)?;
    let mut builder = Builder::new(writer);
    let mut packed = Packed::default();
    let mut room = MAX_COPIES;
    for name in names {
        let Some(found) = scan.entries.get(name) else { continue };
        let mut header = Header::new_gnu();
        header.set_mode(found.mode);
        header.set_size(0);
        header.set_mtime(u64::try_from(found.stamp.modified / 1_000_000_000).unwrap_or(0));
        let mut hash = String::new();
        match &found.kind {
            Kind::Folder => {
                header.set_entry_type(EntryType::Directory);
                // A folder that its owner may not write to would stay empty.
                header.set_mode(found.mode | 0o700);
                builder.append_data(&mut header, name, std::io::empty())?;
            }
            Kind::Link { target } => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, name, target)?;
            }
            Kind::File { .. } => {
                let mut source = match open(&root, name, found) {
                    Ok(source) => source,
                    Err(error)
                        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) =>
                    {
                        packed.left_out.push(format!("{name}: {error}"));
                        continue;
                    }
                    Err(error) => return Err(Error::new(error.kind(), format!("{name}: {error}"))),
                };
                source.copy = copies.filter(|_| source.left <= MAX_COPY.min(room)).map(|_| Vec::new());
                source.count = count;
                header.set_entry_type(EntryType::Regular);
                header.set_size(source.left);
                builder.append_data(&mut header, name, &mut source)?;
                hash = source.hasher.finalize().to_hex().to_string();
                if let (Some(folder), Some(copy)) = (copies, source.copy) {
                    room -= copy.len() as u64;
                    std::fs::write(folder.join(&hash), copy)?;
                }
            }
        }
        let entry = Entry { kind: found.kind.clone(), mode: found.mode, stamp: found.stamp, hash };
        packed.entries.insert(name.clone(), entry);
    }
    builder.into_inner()?.flush()?;
    Ok(packed)
}

fn open<'a>(root: &Root, name: &'a str, found: &'a scan::Found) -> Result<Source<'a>> {
    let (reader, left): (Box<dyn Read + 'a>, u64) = match &found.made {
        Some(made) => (Box::new(&made[..]), made.len() as u64),
        None => {
            let file = root.file(name)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(Error::new(ErrorKind::NotFound, "it is no file any more"));
            }
            (Box::new(file), metadata.len())
        }
    };
    Ok(Source { reader, left, name, hasher: blake3::Hasher::new(), copy: None, count: &|_| {} })
}

/// Reads as many bytes as the header promised: what grows is cut, what shrinks is an error.
struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    left: u64,
    name: &'a str,
    hasher: blake3::Hasher,
    copy: Option<Vec<u8>>,
    count: &'a dyn Fn(usize),
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let length = (&mut self.reader).take(self.left).read(buffer)?;
        if length == 0 {
            let message = format!("{}: became shorter while being read; repeat the command", self.name);
            return Err(Error::new(ErrorKind::UnexpectedEof, message));
        }
        self.left -= length as u64;
        self.hasher.update(&buffer[..length]);
        if let Some(copy) = &mut self.copy {
            copy.extend_from_slice(&buffer[..length]);
        }
        (self.count)(length);
        Ok(length)
    }
}
