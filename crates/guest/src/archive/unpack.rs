//! Unpacking into a folder, and into nothing but that folder.
//!
//! Names are checked first, and every one is then opened below the folder's descriptor with the kernel refusing
//! whatever leads out: an archive's own symlinks can point anywhere, but nothing is written through them to elsewhere.

use std::ffi::OsStr;
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
use crate::files::errors::explain;
use crate::files::fresh::{self, Fresh};
use crate::files::{Owner, folders};
use crate::paths::{self, GuestPath};

struct Target<'a> {
    root: OwnedFd,
    account: &'a Account,
    /// Under this name things are made that then replace others.
    unfinished: String,
    /// The folder used last, since an archive has its entries together.
    last: Option<(PathBuf, Folder)>,
}

/// A folder, and whose something new in it is.
struct Folder {
    folder: OwnedFd,
    owner: Owner,
}

/// Unpacks everything, making the folder if it is not there.
pub(super) fn unpack(path: &GuestPath, input: impl Read, account: &Account) -> Result<()> {
    let made = folders::ensure(path, path.as_path(), account)?;
    let unpacked = unpack_into(&made.folder, path, input, account);
    // Takes the folder back only if it is empty: what came before a fault stays.
    unpacked.inspect_err(|_| made.unmake())
}

fn unpack_into(folder: &OwnedFd, path: &GuestPath, input: impl Read, account: &Account) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |error: Errno| explain(&error.into(), path);
    let root = rustix::fs::openat(folder, c".", flags, Mode::empty()).map_err(failed)?;
    let unfinished = fresh::unfinished_name().map_err(failed)?;
    let mut target = Target { root, account, unfinished, last: None };
    let mut entries = Entries::new(input);
    while let Some(entry) = entries.next()? {
        let Some(name) = paths::entry_name(&entry.name)? else { continue };
        target.place(&name, &entry, &mut entries)?;
    }
    Ok(())
}

impl Target<'_> {
    fn place(&mut self, path: &Path, entry: &Entry, content: &mut Entries<impl Read>) -> Result<()> {
        let (parent, name) = split(path)?;
        let failed = |error: Errno| explain_entry(error, path);
        match entry.kind {
            EntryType::Directory => {
                let (folder, _) = self.folder(parent)?;
                make_folder(folder, name, Mode::from_raw_mode(entry.mode & 0o777)).map_err(failed)?;
            }
            EntryType::Regular | EntryType::Continuous => {
                let (folder, _) = self.folder(parent)?;
                write_file(folder, entry, path, content)?.put(name).map_err(failed)?;
            }
            EntryType::Symlink => {
                let (folder, unfinished) = self.folder(parent)?;
                let to = OsStr::from_bytes(&entry.link);
                replace(&folder.folder, unfinished, name, |name| {
                    rustix::fs::symlinkat(to, &folder.folder, name)?;
                    folder.give(name);
                    Ok(())
                })
                .map_err(failed)?;
            }
            EntryType::Link => {
                let old = paths::entry_name(&entry.link)?
                    .ok_or_else(|| Error::invalid(format!("the archive links {path:?} to nothing")))?;
                let (old_parent, old_name) = split(&old)?;
                let old_folder = self.open_below(old_parent).map_err(failed)?;
                let (folder, unfinished) = self.folder(parent)?;
                if path != old {
                    replace(&folder.folder, unfinished, name, |name| {
                        rustix::fs::linkat(&old_folder, old_name, &folder.folder, name, AtFlags::empty())
                    })
                    .map_err(failed)?;
                    // Two names of one file already: then the kernel leaves both where they are.
                    remove(&folder.folder, unfinished);
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

    /// A folder below the target, made with all above it if it is not there; and the name for what is unfinished.
    fn folder(&mut self, path: &Path) -> Result<(&Folder, &OsStr)> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let folder = self.ensure_below(path).map_err(|error| explain_entry(error, path))?;
            self.last = Some((path.to_owned(), folder));
        }
        match &self.last {
            Some((_, folder)) => Ok((folder, OsStr::new(&self.unfinished))),
            None => Err(Error::internal("the archive's folder was lost")),
        }
    }

    fn ensure_below(&self, path: &Path) -> rustix::io::Result<Folder> {
        // Up to the first that is there, and down again from it.
        let mut there = path;
        let mut missing = Vec::new();
        let mut folder = loop {
            match (self.open_below(there), there.parent(), there.file_name()) {
                (Err(Errno::NOENT), Some(parent), Some(name)) => {
                    missing.push(name);
                    there = parent;
                }
                (opened, ..) => {
                    let folder = opened?;
                    break Folder { owner: Owner::in_folder(&folder, self.account), folder };
                }
            }
        };
        let mut at = there.to_owned();
        for name in missing.into_iter().rev() {
            at.push(name);
            folder.folder = match make_folder(&folder, name, Mode::from_raw_mode(0o755))? {
                Place::Made => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&folder.folder, name, flags, Mode::empty())?
                }
                Place::Taken => self.open_below(&at)?,
            };
        }
        Ok(folder)
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

impl Folder {
    fn give(&self, name: &OsStr) {
        let (uid, gid) = self.owner.ids();
        let _ = rustix::fs::chownat(&self.folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
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

/// Whether a folder was made or there is one.
enum Place {
    Made,
    Taken,
}

/// One that is there stays as it is.
fn make_folder(folder: &Folder, name: &OsStr, mode: Mode) -> rustix::io::Result<Place> {
    match rustix::fs::mkdirat(&folder.folder, name, mode) {
        Ok(()) => {
            folder.give(name);
            Ok(Place::Made)
        }
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(&folder.folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                // A symlink is checked when something is put below it.
                FileType::Directory | FileType::Symlink => Ok(Place::Taken),
                _ => Err(Errno::NOTDIR),
            }
        }
        Err(error) => Err(error),
    }
}

/// Makes something that is made in one step, in the place of whatever has its name.
fn replace(
    folder: &OwnedFd,
    unfinished: &OsStr,
    name: &OsStr,
    make: impl Fn(&OsStr) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match make(name) {
        Err(Errno::EXIST) => make(unfinished).and_then(|()| put_in_place(folder, unfinished, name)),
        made => return made,
    }
    .inspect_err(|_| remove(folder, unfinished))
}

fn put_in_place(folder: &OwnedFd, unfinished: &OsStr, name: &OsStr) -> rustix::io::Result<()> {
    rustix::fs::renameat(folder, unfinished, folder, name)
}

fn remove(folder: &OwnedFd, name: &OsStr) {
    let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
}

/// Writes a file that has no name yet: whoever reads the one it replaces has all of that until this one is whole.
fn write_file<'a>(
    folder: &'a Folder,
    entry: &Entry,
    path: &Path,
    content: &mut Entries<impl Read>,
) -> Result<Fresh<&'a OwnedFd>> {
    let failed = |error: Errno| explain_entry(error, path);
    let mut fresh = Fresh::make(&folder.folder).map_err(failed)?;
    let file = &mut fresh.file;
    let mut buffer = Buffer::take();
    let mut left = entry.size;
    while left > 0 {
        let count = content.read(&mut buffer).map_err(|_| ended())?;
        file.write_all(&buffer[..count])
            .map_err(|error| explain(&error, &format!("{path:?} in the archive")))?;
        left = left.saturating_sub(count as u64);
    }
    folder.owner.give_file(&*file);
    rustix::fs::fchmod(&*file, Mode::from_raw_mode(entry.mode & 0o777)).map_err(failed)?;
    if let Some(seconds) = entry.mtime {
        let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps {
            last_access: unchanged,
            last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        // A time the file system cannot keep is not worth failing for.
        let _ = rustix::fs::futimens(&*file, &times);
    }
    Ok(fresh)
}
