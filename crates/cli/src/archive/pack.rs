//! A local folder into a tar stream: files, folders and links as they are, owned by the sandbox's user.

use std::fs::Metadata;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::Skipped;

/// User and group of everything in the archive: the user `sandbox`. Ids of this machine mean nothing over there.
const SANDBOX_USER: u64 = 1000;

/// Packs what is in `folder`; names are relative to it. Links are packed as links, never followed.
pub(crate) fn pack(folder: &Path, writer: impl Write) -> Result<Skipped> {
    let mut builder = Builder::new(writer);
    let mut skipped = Skipped::default();
    // Paths relative to `folder`, those to do next at the end.
    let mut left = names_in(folder, Path::new(""))?;
    while let Some(name) = left.pop() {
        let path = folder.join(&name);
        let failed = |error: Error| told(&path, &error);
        let metadata = path.symlink_metadata().map_err(failed)?;
        let mut header = header_of(&metadata);
        if metadata.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, &name, std::io::empty())?;
            left.extend(names_in(folder, &name)?);
        } else if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, &name, path.read_link().map_err(failed)?)?;
        } else if metadata.is_file() {
            let mut file = Exactly {
                file: std::fs::File::open(&path).map_err(failed)?,
                left: metadata.len(),
                path: &path,
            };
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            builder.append_data(&mut header, &name, &mut file)?;
        } else {
            skipped.0 += 1;
        }
    }
    builder.into_inner()?.flush()?;
    Ok(skipped)
}

/// The names in one folder, last one first.
fn names_in(root: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let path = root.join(folder);
    let read = || -> Result<Vec<PathBuf>> {
        std::fs::read_dir(&path)?.map(|entry| Ok(folder.join(entry?.file_name()))).collect()
    };
    let mut names = read().map_err(|error| told(&path, &error))?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn header_of(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    header.set_uid(SANDBOX_USER);
    header.set_gid(SANDBOX_USER);
    header
}

fn told(path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads as many bytes as the header promised: what grows is cut, what shrinks is an error, for a header cannot be unsaid.
struct Exactly<'a> {
    file: std::fs::File,
    left: u64,
    path: &'a Path,
}

impl std::io::Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let length =
            (&mut self.file).take(self.left).read(buffer).map_err(|error| told(self.path, &error))?;
        if length == 0 {
            return Err(Error::new(
                ErrorKind::UnexpectedEof,
                format!("{}: became shorter while being read", self.path.display()),
            ));
        }
        self.left -= length as u64;
        Ok(length)
    }
}
