//! The entries of a layer, one by one.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::path::EntryPath;
use super::times::{FolderTimes, stamps};
use super::tree::{Folder, Tree};
use super::{Unpacked, attributes, owner, remove};
use crate::error::shown;
use crate::tar::{Entry, Kind, Reader};
use crate::{ImageError, Limits};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS kept for itself.
const META: &[u8] = b".wh..wh.";

pub(super) struct Unpacking<'a> {
    tree: Tree<'a>,
    limits: &'a Limits,
    times: FolderTimes,
    /// Names that this layer has; nothing in the lowest one, which cannot hide anything.
    touched: Option<Touched>,
    /// Where device nodes would be, as numbers likewise. What is a hard link to one is one.
    devices: HashSet<u64>,
    hasher: RandomState,
    done: Unpacked,
}

/// Names in folders, as a number each: two million of them have to fit. The hash has a key of its own, so that nobody can
/// make two names the same number.
pub(super) struct Touched {
    names: HashSet<u64>,
    hasher: RandomState,
}

// === impl Touched ===

impl Touched {
    fn new() -> Self {
        Self { names: HashSet::new(), hasher: RandomState::new() }
    }

    fn insert(&mut self, folder: &Folder, name: &[u8]) {
        self.names.insert(self.hasher.hash_one((folder.inode, name)));
    }

    pub(super) fn has(&self, folder: &Folder, name: &[u8]) -> bool {
        self.names.contains(&self.hasher.hash_one((folder.inode, name)))
    }
}

/// An entry, checked, at its place.
struct Placed<'a> {
    folder: Rc<Folder>,
    name: &'a [u8],
    path: &'a [u8],
    owner: (Uid, Gid),
}

// === impl Unpacking ===

impl<'a> Unpacking<'a> {
    pub(super) fn new(tree: Tree<'a>, limits: &'a Limits) -> Self {
        Self {
            tree,
            limits,
            times: FolderTimes::default(),
            touched: None,
            devices: HashSet::new(),
            hasher: RandomState::new(),
            done: Unpacked::default(),
        }
    }

    pub(super) fn begin_layer(&mut self, is_above_others: bool) {
        self.touched = is_above_others.then(Touched::new);
    }

    pub(super) fn finish(mut self) -> Result<Unpacked, ImageError> {
        self.times.apply(&mut self.tree)?;
        Ok(self.done)
    }

    pub(super) fn apply(&mut self, entry: &Entry, data: &mut Reader<impl BufRead>) -> Result<(), ImageError> {
        self.tree.check_called_off()?;
        self.done.entries += 1;
        if self.done.entries > self.limits.entries {
            return Err(ImageError::TooLarge(format!("it has more than {} entries", self.limits.entries)));
        }
        let path = EntryPath::read(&entry.name, self.limits)?;
        let Some((above, name)) = path.split() else { return self.root(entry) };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(above, name, &path);
        }
        if entry.kind == Kind::Device {
            return self.device(path.as_bytes());
        }
        let owner = owner::read(path.as_bytes(), entry.uid, entry.gid)?;
        let folder = self.tree.ensure(above)?;
        if let Some(touched) = &mut self.touched {
            touched.insert(&folder, name);
        }
        let placed = Placed { folder, name, path: path.as_bytes(), owner };
        match entry.kind {
            Kind::Directory => self.directory(&placed, entry),
            Kind::File => self.file(&placed, entry, data),
            Kind::HardLink => self.hard_link(&placed, entry),
            Kind::Symlink => self.symlink(&placed, entry),
            Kind::Fifo => self.fifo(&placed, entry),
            Kind::Device => Ok(()),
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<(), ImageError> {
        if entry.kind != Kind::Directory {
            let name = shown(&entry.name);
            return Err(ImageError::Broken(format!("{name} stands for the root and is no directory")));
        }
        let owner = owner::read(b"/", entry.uid, entry.gid)?;
        let root = self.tree.root();
        self.describe_directory(&root, b"", owner, entry)
    }

    fn whiteout(&mut self, above: &[u8], name: &[u8], path: &EntryPath) -> Result<(), ImageError> {
        let Some(touched) = &self.touched else { return Ok(()) };
        let hides_all = name == OPAQUE;
        if !hides_all && name.starts_with(META) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ImageError::Broken(format!(
                "{} hides nothing that has a name",
                shown(path.as_bytes())
            )));
        }
        // Where there is no such folder, there is nothing to hide.
        let Some(folder) = self.tree.find(above)? else { return Ok(()) };
        if hides_all {
            remove::emptied(&mut self.tree, &folder, touched)
        } else {
            remove::hidden(&mut self.tree, &folder, hidden, touched)
        }
    }

    fn directory(&mut self, at: &Placed<'_>, entry: &Entry) -> Result<(), ImageError> {
        match fs::mkdirat(&at.folder, at.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) if at.kind()? == Some(FileType::Directory) => {}
            Err(Errno::EXIST) => {
                remove::replaced(&mut self.tree, &at.folder, at.name)?;
                fs::mkdirat(&at.folder, at.name, Mode::from_raw_mode(0o700))
                    .map_err(|error| at.failed(error))?;
            }
            Err(error) => return Err(at.failed(error)),
        }
        let folder = at.folder.open(at.name).map_err(|error| at.failed(error))?;
        self.describe_directory(&folder, at.path, at.owner, entry)
    }

    fn describe_directory(
        &mut self,
        folder: &Folder,
        path: &[u8],
        (uid, gid): (Uid, Gid),
        entry: &Entry,
    ) -> Result<(), ImageError> {
        fs::fchown(folder, Some(uid), Some(gid))
            .and_then(|()| fs::fchmod(folder, Mode::from_raw_mode(entry.mode)))
            .and_then(|()| if self.touched.is_some() { attributes::clear(folder) } else { Ok(()) })
            .map_err(|error| ImageError::io(format!("make {}", shown(path)), error))?;
        self.done.attributes += attributes::set(folder, path, &entry.attributes)?;
        self.times.set(path, entry.mtime)
    }

    fn file(
        &mut self,
        at: &Placed<'_>,
        entry: &Entry,
        data: &mut Reader<impl BufRead>,
    ) -> Result<(), ImageError> {
        self.done.bytes = self.done.bytes.saturating_add(entry.size);
        if self.done.bytes > self.limits.unpacked_bytes {
            let most = self.limits.unpacked_bytes;
            return Err(ImageError::TooLarge(format!("its files have more than {most} bytes")));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.make(at, || fs::openat(&at.folder, at.name, flags, Mode::from_raw_mode(0o600)))?;
        match &entry.pieces {
            None => write(&file, at, data, 0, entry.size)?,
            Some(pieces) => {
                fs::ftruncate(&file, entry.size).map_err(|error| at.failed(error))?;
                for piece in pieces {
                    write(&file, at, data, piece.offset, piece.length)?;
                }
            }
        }
        let (uid, gid) = at.owner;
        // Changing the owner takes setuid and capabilities away, so it is first.
        fs::fchown(&file, Some(uid), Some(gid))
            .and_then(|()| fs::fchmod(&file, Mode::from_raw_mode(entry.mode)))
            .map_err(|error| at.failed(error))?;
        self.done.attributes += attributes::set(&file, at.path, &entry.attributes)?;
        fs::futimens(&file, &stamps(entry.mtime)).map_err(|error| at.failed(error))
    }

    fn hard_link(&mut self, at: &Placed<'_>, entry: &Entry) -> Result<(), ImageError> {
        let target = EntryPath::read(&entry.link, self.limits)?;
        let missing = || {
            let (name, target) = (shown(at.path), shown(target.as_bytes()));
            ImageError::Broken(format!("{name} is a hard link to {target}, which is not there"))
        };
        let Some((above, target_name)) = target.split() else { return Err(missing()) };
        let is_device = self.devices.contains(&self.hasher.hash_one(target.as_bytes()));
        let target_folder = match self.tree.find(above)? {
            None if is_device => return self.device(at.path),
            found => found.ok_or_else(missing)?,
        };
        let found = match fs::statat(&target_folder, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if is_device => return self.device(at.path),
            Err(Errno::NOENT) => return Err(missing()),
            found => found.map_err(|error| at.failed(error))?,
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let (name, target) = (shown(at.path), shown(target.as_bytes()));
            return Err(ImageError::Broken(format!(
                "{name} is a hard link to {target}, which is a directory"
            )));
        }
        // It may be a link to what is already there, and must not remove it.
        if let Ok(there) = fs::statat(&at.folder, at.name, AtFlags::SYMLINK_NOFOLLOW)
            && there.st_ino == found.st_ino
        {
            return Ok(());
        }
        let link = || fs::linkat(&target_folder, target_name, &at.folder, at.name, AtFlags::empty());
        match self.make(at, link) {
            // What was at the name held the target.
            Err(ImageError::Io { source, .. }) if Errno::from_io_error(&source) == Some(Errno::NOENT) => {
                Err(missing())
            }
            made => made,
        }
    }

    fn device(&mut self, path: &[u8]) -> Result<(), ImageError> {
        self.done.devices += 1;
        self.devices.insert(self.hasher.hash_one(path));
        Ok(())
    }

    fn symlink(&mut self, at: &Placed<'_>, entry: &Entry) -> Result<(), ImageError> {
        if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() >= 4096 {
            let (name, target) = (shown(at.path), shown(&entry.link));
            return Err(ImageError::Broken(format!("{name} is a link to {target}, which can be no path")));
        }
        self.make(at, || fs::symlinkat(entry.link.as_slice(), &at.folder, at.name))?;
        self.done.attributes += entry.attributes.len() as u64;
        describe_name(at, entry)
    }

    fn fifo(&mut self, at: &Placed<'_>, entry: &Entry) -> Result<(), ImageError> {
        let mode = Mode::from_raw_mode(entry.mode);
        self.make(at, || fs::mknodat(&at.folder, at.name, FileType::Fifo, mode, 0))?;
        self.done.attributes += entry.attributes.len() as u64;
        // Past the mask of this process. There is no `chmod` that does not follow, but what was just made is no link.
        let (uid, gid) = at.owner;
        fs::chownat(&at.folder, at.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| fs::chmodat(&at.folder, at.name, mode, AtFlags::empty()))
            .map_err(|error| at.failed(error))?;
        describe_name(at, entry)
    }

    /// Does what makes something new at a name; what is there already is removed first.
    fn make<T>(
        &mut self,
        at: &Placed<'_>,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, ImageError> {
        let made = match make() {
            Err(Errno::EXIST) => {
                remove::replaced(&mut self.tree, &at.folder, at.name)?;
                make()
            }
            made => made,
        };
        made.map_err(|error| at.failed(error))
    }
}

/// Owner and time of what cannot be opened.
fn describe_name(at: &Placed<'_>, entry: &Entry) -> Result<(), ImageError> {
    let (uid, gid) = at.owner;
    if entry.kind == Kind::Symlink {
        fs::chownat(&at.folder, at.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| at.failed(error))?;
    }
    fs::utimensat(&at.folder, at.name, &stamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| at.failed(error))
}

fn write(
    file: &OwnedFd,
    at: &Placed<'_>,
    data: &mut Reader<impl BufRead>,
    mut offset: u64,
    mut length: u64,
) -> Result<(), ImageError> {
    while length > 0 {
        let piece = data.data()?;
        let most = usize::try_from(length).map_or(piece.len(), |length| length.min(piece.len()));
        let written = match rustix::io::pwrite(file, &piece[..most], offset) {
            Err(Errno::INTR) => continue,
            Ok(0) => Err(Errno::IO),
            written => written,
        };
        let written = written.map_err(|error| at.failed(error))?;
        data.consume(written);
        offset += written as u64;
        length -= written as u64;
    }
    Ok(())
}

// === impl Placed ===

impl Placed<'_> {
    fn kind(&self) -> Result<Option<FileType>, ImageError> {
        match fs::statat(&self.folder, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: Errno) -> ImageError {
        ImageError::io(format!("make {}", shown(self.path)), error)
    }
}
