//! Unpacking into a folder, and into nothing but that folder.
//!
//! Names are checked first, and every one is then opened below the folder's descriptor with the kernel refusing
//! whatever leads out: an archive's own symlinks can point anywhere, but nothing is written through them to elsewhere.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use tar::EntryType;
use warren_types::Error;
use warren_types::error::Result;

use super::entries::{Entries, Entry, ended};
use crate::account::Account;
use crate::buffer::Buffer;
use crate::files::Owner;
use crate::files::errors::explain;
use crate::paths::{self, GuestPath};

struct Target {
    root: OwnedFd,
    owner: Owner,
    /// The folder used last, since an archive has its entries together.
    last: Option<(PathBuf, OwnedFd)>,
}

/// Unpacks everything, making the folder if it is not there.
pub(super) fn unpack(path: &GuestPath, input: impl Read, account: &Account) -> Result<()> {
    crate::files::make_folder(path, account, false)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |error: std::io::Error| explain(&error, path);
    let root =
        rustix::fs::open(path.as_path(), flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let real = path.as_path().canonicalize().map_err(failed)?;
    let mut target = Target { root, owner: Owner::inside(&real, account), last: None };
    let mut entries = Entries::new(input);
    while let Some(entry) = entries.next()? {
        let Some(name) = paths::entry_name(&entry.name)? else { continue };
        target.place(&name, &entry, &mut entries)?;
    }
    Ok(())
}

impl Target {
    fn place(&mut self, path: &Path, entry: &Entry, content: &mut Entries<impl Read>) -> Result<()> {
        let (parent, name) = split(path)?;
        let failed = |error: Errno| explain_entry(error, path);
        let owner = self.owner;
        match entry.kind {
            EntryType::Directory => {
                let folder = self.folder(parent)?;
                make_folder(folder, name, Mode::from_raw_mode(entry.mode & 0o777), owner).map_err(failed)?;
            }
            EntryType::Regular | EntryType::Continuous => {
                let folder = self.folder(parent)?;
                write_file(folder, name, entry, owner, path, content)?;
            }
            EntryType::Symlink => {
                let folder = self.folder(parent)?;
                make_way(folder, name).map_err(failed)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), folder, name).map_err(failed)?;
                give(folder, name, owner);
            }
            EntryType::Link => {
                let old = paths::entry_name(&entry.link)?
                    .ok_or_else(|| Error::invalid(format!("the archive links {path:?} to nothing")))?;
                let (old_parent, old_name) = split(&old)?;
                let old_folder = self.open_below(old_parent).map_err(failed)?;
                let folder = self.folder(parent)?;
                if path != old {
                    make_way(folder, name).map_err(failed)?;
                    rustix::fs::linkat(&old_folder, old_name, folder, name, AtFlags::empty())
                        .map_err(failed)?;
                }
            }
            _ => {
                return Err(Error::invalid(format!(
                    "the archive has a device or something else that is no file: {path:?}"
                )));
            }
        }
        Ok(())
    }

    /// A folder below the target, made with all above it if it is not there.
    fn folder(&mut self, path: &Path) -> Result<&OwnedFd> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let opened = match self.open_below(path) {
                Err(Errno::NOENT) => self.make_below(path),
                opened => opened,
            };
            self.last = Some((path.to_owned(), opened.map_err(|error| explain_entry(error, path))?));
        }
        Ok(self.last.as_ref().map_or(&self.root, |(_, folder)| folder))
    }

    fn make_below(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let mut above = PathBuf::new();
        for name in path {
            let folder = self.open_below(&above)?;
            make_folder(&folder, name, Mode::from_raw_mode(0o755), self.owner)?;
            above.push(name);
        }
        self.open_below(path)
    }

    fn open_below(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), inside) {
                // Something was renamed while the kernel looked.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }
}

fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| Error::invalid("the archive has an entry without a name"))?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

fn explain_entry(error: Errno, path: &Path) -> Error {
    let shown = format!("{path:?} in the archive");
    match error {
        Errno::XDEV => Error::invalid(format!("{shown} leads out of the folder through a symbolic link")),
        Errno::ISDIR => Error::conflict(format!("{shown} is a directory already")),
        error => explain(&error.into(), &shown),
    }
}

/// One that is there stays as it is.
fn make_folder(folder: &OwnedFd, name: &OsStr, mode: Mode, owner: Owner) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(folder, name, mode) {
        Ok(()) => {
            give(folder, name, owner);
            Ok(())
        }
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                // A symlink is checked when something is put below it.
                FileType::Directory | FileType::Symlink => Ok(()),
                _ => Err(Errno::NOTDIR),
            }
        }
        Err(error) => Err(error),
    }
}

/// Removes what is there, unless it is a folder.
fn make_way(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn give(folder: &OwnedFd, name: &OsStr, owner: Owner) {
    let (uid, gid) = owner.ids();
    let _ = rustix::fs::chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
}

fn write_file(
    folder: &OwnedFd,
    name: &OsStr,
    entry: &Entry,
    owner: Owner,
    path: &Path,
    content: &mut Entries<impl Read>,
) -> Result<()> {
    let failed = |error: Errno| explain_entry(error, path);
    make_way(folder, name).map_err(failed)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file =
        File::from(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?);
    let mut buffer = Buffer::take();
    let mut left = entry.size;
    while left > 0 {
        let count = content.read(&mut buffer).map_err(|_| ended())?;
        file.write_all(&buffer[..count])
            .map_err(|error| explain(&error, &format!("{path:?} in the archive")))?;
        left = left.saturating_sub(count as u64);
    }
    owner.give_file(&file);
    rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777)).map_err(failed)?;
    if let Some(seconds) = entry.mtime {
        let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps {
            last_access: unchanged,
            last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        // A time the file system cannot keep is not worth failing for.
        let _ = rustix::fs::futimens(&file, &times);
    }
    Ok(())
}
