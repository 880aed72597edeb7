//! Files below one folder, and never outside of it: no symbolic link is followed on the way, whoever put it there and when.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Stamp;

pub(crate) struct Root {
    folder: OwnedFd,
}

/// What stands at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) stamp: Stamp,
}

const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::open(path, flags, Mode::empty())? })
    }

    fn open_at(&self, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let name = if name.is_empty() { "." } else { name };
        loop {
            match rustix::fs::openat2(&self.folder, name, flags | OFlags::CLOEXEC, Mode::empty(), INSIDE) {
                // Something was renamed while the kernel looked.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }

    fn parent<'n>(&self, name: &'n str) -> rustix::io::Result<(OwnedFd, &'n OsStr)> {
        let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
        Ok((self.open_at(parent, OFlags::RDONLY | OFlags::DIRECTORY)?, OsStr::new(last)))
    }

    /// Opens a file for reading; what is none is not waited for.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        Ok(self.open_at(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?.into())
    }

    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"));
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large"));
        }
        Ok(content)
    }

    /// None when there is nothing, also when what should be a folder on the way is none.
    pub(crate) fn find(&self, name: &str) -> io::Result<Option<Found>> {
        let stat = self
            .parent(name)
            .and_then(|(folder, last)| rustix::fs::statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => Ok(Some(Found {
                kind: FileType::from_raw_mode(stat.st_mode),
                mode: stat.st_mode & 0o777,
                stamp: Stamp {
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    modified: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
                    changed: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
                    inode: stat.st_ino,
                },
            })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn read_link(&self, name: &str) -> io::Result<String> {
        let (folder, last) = self.parent(name)?;
        let target = rustix::fs::readlinkat(&folder, last, Vec::new())?;
        String::from_utf8(target.into_bytes())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the link's target is not UTF-8"))
    }

    /// Makes the folders that a name needs.
    pub(crate) fn make_parents(&self, name: &str) -> io::Result<()> {
        for (end, _) in name.match_indices('/') {
            let (folder, last) = self.parent(&name[..end])?;
            match rustix::fs::mkdirat(&folder, last, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Puts a whole file in its place in one step; an empty folder makes way.
    pub(crate) fn write(&self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let (folder, last) = self.parent(name)?;
        let beside = beside();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&folder, &beside, flags, Mode::from_raw_mode(0o600))?;
        let written = (|| {
            let mut file = File::from(opened);
            file.write_all(content)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            place(&folder, &beside, last)
        })();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&folder, &beside, AtFlags::empty());
        }
        written
    }

    pub(crate) fn link(&self, name: &str, target: &str) -> io::Result<()> {
        let (folder, last) = self.parent(name)?;
        let beside = beside();
        rustix::fs::symlinkat(target, &folder, &beside)?;
        let placed = place(&folder, &beside, last);
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(&folder, &beside, AtFlags::empty());
        }
        placed
    }

    pub(crate) fn set_mode(&self, name: &str, mode: u32) -> io::Result<()> {
        let file = self.file(name)?;
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let (folder, last) = self.parent(name)?;
        Ok(rustix::fs::unlinkat(&folder, last, AtFlags::empty())?)
    }

    /// Removes the folders above a name that have nothing in them any more.
    pub(crate) fn remove_empty_parents(&self, name: &str) {
        let mut name = name;
        while let Some((parent, _)) = name.rsplit_once('/') {
            let removed = self
                .parent(parent)
                .and_then(|(folder, last)| rustix::fs::unlinkat(&folder, last, AtFlags::REMOVEDIR));
            if removed.is_err() {
                return;
            }
            name = parent;
        }
    }
}

fn place(folder: &OwnedFd, from: &str, to: &OsStr) -> io::Result<()> {
    match rustix::fs::renameat(folder, from, folder, to) {
        Err(Errno::ISDIR | Errno::NOTDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            rustix::fs::unlinkat(folder, to, AtFlags::REMOVEDIR)?;
            Ok(rustix::fs::renameat(folder, from, folder, to)?)
        }
        renamed => Ok(renamed?),
    }
}

fn beside() -> String {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!(".warren-{}-{number}", std::process::id())
}

#[expect(clippy::useless_conversion, reason = "the types differ between architectures")]
fn nanoseconds(seconds: impl TryInto<i64>, part: impl TryInto<i64>) -> i64 {
    let seconds = seconds.try_into().unwrap_or(0);
    let part = part.try_into().unwrap_or(0);
    i64::from(seconds).saturating_mul(1_000_000_000).saturating_add(part)
}

/// What a local file says of itself, for files that were walked to.
pub(crate) fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    Stamp {
        size: metadata.len(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

/// Bytes of a path of the local system as text.
pub(crate) fn text_of(path: &Path) -> Option<String> {
    String::from_utf8(path.as_os_str().to_owned().into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn nothing_is_read_or_written_through_a_link() {
        let home = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "outside").unwrap();
        std::os::unix::fs::symlink(outside.path(), home.path().join("door")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("file"), home.path().join("link")).unwrap();
        let root = Root::open(home.path()).unwrap();
        assert!(root.read("door/file", 100).is_err());
        assert!(root.read("link", 100).is_err());
        assert!(root.write("door/new", b"x", 0o644).is_err());
        assert!(root.make_parents("door/folder/x").is_err());
        assert!(root.remove("door/file").is_err());
        assert!(root.read("../x", 100).is_err());
        // The link itself is replaced, not what it leads to.
        root.write("link", b"inside", 0o644).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "outside");
        assert_eq!(fs::read_to_string(home.path().join("link")).unwrap(), "inside");
    }
}
