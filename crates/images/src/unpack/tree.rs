//! The directory that is unpacked into: folders of it are opened here and nowhere else.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::path::split;
use crate::error::shown;
use crate::{ImageError, Limits};

/// Open folders that are kept: entries come folder by folder.
const KEPT: usize = 64;
/// A lookup through links is to be tried again when something was renamed meanwhile, anywhere on the host.
const TRIES: usize = 1000;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) struct Tree<'a> {
    root: Rc<Folder>,
    /// By the path they were opened at. Emptied whenever a folder or a link goes, since paths may then lead elsewhere.
    kept: HashMap<Vec<u8>, Rc<Folder>>,
    limits: &'a Limits,
    called_off: &'a AtomicBool,
    /// Names that removing may still look at.
    visits: Cell<u64>,
    /// Names in the path of the root itself.
    depth: usize,
}

pub(super) struct Folder {
    fd: OwnedFd,
    /// What tells it from other folders of the file system.
    pub(super) inode: u64,
}

// === impl Folder ===

impl Folder {
    fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        let inode = fs::fstat(&fd)?.st_ino;
        Ok(Self { fd, inode })
    }

    /// A folder in this one, its name not followed.
    pub(super) fn open(&self, name: &[u8]) -> rustix::io::Result<Self> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        fs::openat2(&self.fd, name, FOLDER, Mode::empty(), resolve).and_then(Self::new)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// === impl Tree ===

impl<'a> Tree<'a> {
    pub(super) fn open(
        root: &Path,
        limits: &'a Limits,
        called_off: &'a AtomicBool,
    ) -> Result<Self, ImageError> {
        let opened = fs::openat(CWD, root, FOLDER, Mode::empty()).and_then(Folder::new);
        let opened = opened.map_err(|error| ImageError::file("open", root, error))?;
        let depth = real_depth(&opened).map_err(|error| ImageError::file("find", root, error))?;
        Ok(Self {
            root: Rc::new(opened),
            kept: HashMap::new(),
            limits,
            called_off,
            visits: Cell::new(limits.entries.saturating_mul(4)),
            depth,
        })
    }

    pub(super) fn root(&self) -> Rc<Folder> {
        self.root.clone()
    }

    /// The folder at a path, links followed as after `chroot`. `None` when there is none.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Folder>>, ImageError> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        if let Some(folder) = self.kept.get(path) {
            return Ok(Some(folder.clone()));
        }
        let folder = match self.resolve(path) {
            Ok(folder) => Rc::new(folder),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        };
        self.keep(path, folder.clone());
        Ok(Some(folder))
    }

    /// The folder at a path, made where it is missing, as engines make it: root's, for all to read.
    pub(super) fn ensure(&mut self, path: &[u8]) -> Result<Rc<Folder>, ImageError> {
        if let Some(folder) = self.find(path)? {
            return Ok(folder);
        }
        let Some((above, name)) = split(path) else { return Ok(self.root.clone()) };
        let above = self.ensure(above)?;
        match fs::mkdirat(&above, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // There is something that is no folder, and leads to none.
            Err(Errno::EXIST) => {
                let path = shown(path);
                return Err(ImageError::Broken(format!(
                    "there is an entry in {path}, which is no directory"
                )));
            }
            Err(error) => return Err(ImageError::io(format!("make {}", shown(path)), error)),
        }
        let folder = above.open(name).and_then(|folder| {
            fs::fchown(&folder, Some(fs::Uid::ROOT), Some(fs::Gid::ROOT))?;
            fs::fchmod(&folder, Mode::from_raw_mode(0o755))?;
            Ok(folder)
        });
        let folder = Rc::new(folder.map_err(|error| ImageError::io(format!("make {}", shown(path)), error))?);
        self.keep(path, folder.clone());
        Ok(folder)
    }

    /// To be called when a folder or a link was removed.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    pub(super) fn check_called_off(&self) -> Result<(), ImageError> {
        if self.called_off.load(Ordering::Relaxed) { Err(ImageError::CalledOff) } else { Ok(()) }
    }

    /// To be called for each name that removing looks at: whiteouts over whiteouts would keep it busy for ever.
    pub(super) fn visit(&self) -> Result<(), ImageError> {
        self.check_called_off()?;
        let left = self.visits.get().checked_sub(1);
        self.visits.set(left.ok_or_else(|| ImageError::TooLarge("it removes too many files".to_owned()))?);
        Ok(())
    }

    fn keep(&mut self, path: &[u8], folder: Rc<Folder>) {
        if self.kept.len() >= KEPT {
            self.kept.clear();
        }
        self.kept.insert(path.to_vec(), folder);
    }

    fn resolve(&self, path: &[u8]) -> rustix::io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        // Without links in it the path is as deep as it looks.
        match fs::openat2(&self.root, path, flags, Mode::empty(), within | ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => {}
            opened => return opened.and_then(Folder::new),
        }
        for _ in 0..TRIES {
            match fs::openat2(&self.root, path, flags, Mode::empty(), within) {
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
                Ok(opened) => {
                    let folder = Folder::new(opened)?;
                    // Through links one can get deeper than any path is long, and removing goes down again.
                    let is_too_deep = real_depth(&folder)? > self.depth + self.limits.path_depth;
                    return if is_too_deep { Err(Errno::NAMETOOLONG) } else { Ok(folder) };
                }
            }
        }
        Err(Errno::AGAIN)
    }
}

/// Names in the path that leads to a folder without links; the kernel knows it.
fn real_depth(folder: &Folder) -> rustix::io::Result<usize> {
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder.fd));
    let path = fs::readlinkat(CWD, link, Vec::with_capacity(4096))?;
    Ok(path.to_bytes().iter().filter(|byte| **byte == b'/').count())
}

fn failed(path: &[u8], error: Errno) -> ImageError {
    let path = shown(path);
    match error {
        Errno::LOOP => ImageError::Broken(format!("the links in {path} lead in a circle")),
        Errno::NAMETOOLONG => ImageError::TooLarge(format!("the path {path} leads too deep")),
        Errno::XDEV => ImageError::Broken(format!("the path {path} leads out of the image")),
        _ => ImageError::io(format!("open {path}"), error),
    }
}
