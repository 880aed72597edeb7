//! Making folders. A path is walked once, level by level, so that a deep one costs no more than it is long.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use warren_types::Error;
use warren_types::error::Result;

use super::Owner;
use super::errors::explain;
use super::owner::identity;
use crate::account::Account;
use crate::paths::GuestPath;

const MODE: Mode = Mode::from_raw_mode(0o755);
const OPEN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder that is there now, and what had to be made for it.
pub(crate) struct Made {
    pub(crate) folder: OwnedFd,
    /// Names of those that were not there, outermost first; the last one is the folder itself.
    new: Vec<OsString>,
    owner: Option<Owner>,
}

/// Makes `folder` with all above it, as far as it is not there. `path` is for messages.
pub(crate) fn ensure(path: &GuestPath, folder: &Path, account: &Account) -> Result<Made> {
    match rustix::fs::open(folder, OPEN, Mode::empty()) {
        Ok(folder) => Ok(Made { folder, new: Vec::new(), owner: None }),
        Err(Errno::NOENT) => make(folder, account).map_err(|error| explain_folder(error, path)),
        Err(error) => Err(explain_folder(error, path)),
    }
}

fn explain_folder(error: Errno, path: &GuestPath) -> Error {
    match error {
        Errno::NOTDIR => {
            Error::invalid(format!("{path}: a part of it is a file, so no folder can be there or below it"))
        }
        error => explain(&error.into(), path),
    }
}

fn make(folder: &Path, account: &Account) -> rustix::io::Result<Made> {
    let root = rustix::fs::open("/", OPEN, Mode::empty())?;
    let mut made = Made { folder: root, new: Vec::new(), owner: None };
    for component in folder.components() {
        let entered = match component {
            Component::RootDir | Component::Prefix(_) | Component::CurDir => continue,
            Component::ParentDir => made.enter(OsStr::new("..")),
            Component::Normal(name) => match made.enter(name) {
                Err(Errno::NOENT) => made.add(name, account),
                entered => entered,
            },
        };
        if let Err(error) = entered {
            made.unmake();
            return Err(error);
        }
    }
    Ok(made)
}

impl Made {
    /// Goes into what is there. Whatever was made on the way to it is put to use by somebody else now, and stays.
    fn enter(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        self.folder = rustix::fs::openat(&self.folder, name, OPEN, Mode::empty())?;
        self.new.clear();
        self.owner = None;
        Ok(())
    }

    fn add(&mut self, name: &OsStr, account: &Account) -> rustix::io::Result<()> {
        match rustix::fs::mkdirat(&self.folder, name, MODE) {
            Ok(()) => {}
            // Somebody else was quicker; a symlink to nowhere is no folder.
            Err(Errno::EXIST) => {
                return self.enter(name).map_err(|error| match error {
                    Errno::NOENT => Errno::EXIST,
                    error => error,
                });
            }
            Err(error) => return Err(error),
        }
        let (uid, gid) = self.owner(account).ids();
        let _ = rustix::fs::chownat(&self.folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        self.folder = rustix::fs::openat(&self.folder, name, OPEN | OFlags::NOFOLLOW, Mode::empty())?;
        self.new.push(name.to_owned());
        Ok(())
    }

    /// Whose something new in the folder is. In folders that were just made it is the same as on the outside of them.
    pub(crate) fn owner(&mut self, account: &Account) -> Owner {
        *self.owner.get_or_insert_with(|| Owner::in_folder(&self.folder, account))
    }

    /// Gives the folder to somebody, if it was not there before.
    pub(super) fn give_new(&self, owner: Owner) {
        let Some(name) = self.new.last() else { return };
        if let Ok(above) = rustix::fs::openat(&self.folder, c"..", OPEN, Mode::empty()) {
            let (uid, gid) = owner.ids();
            let _ = rustix::fs::chownat(&above, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        }
    }

    /// Takes back what was made, for something that then failed. What has been put to use or moved since stays.
    pub(crate) fn unmake(&self) {
        let mut above = None;
        for name in self.new.iter().rev() {
            let here = above.as_ref().unwrap_or(&self.folder);
            let Ok(folder) = rustix::fs::openat(here, c"..", OPEN, Mode::empty()) else { return };
            if !is_named(&folder, name, here) {
                return;
            }
            if rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR).is_err() {
                return;
            }
            above = Some(folder);
        }
    }
}

fn is_named(folder: impl AsFd, name: &OsStr, inner: impl AsFd) -> bool {
    let named = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let inner = rustix::fs::fstat(inner);
    named.is_ok_and(|named| inner.is_ok_and(|inner| identity(&named) == identity(&inner)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::time::{Duration, Instant};

    use super::*;

    fn path(path: &Path) -> GuestPath {
        GuestPath::parse(path.as_os_str().as_bytes()).unwrap()
    }

    fn ensure(folder: &Path) -> Result<Made> {
        super::ensure(&path(folder), folder, &Account::default())
    }

    #[test]
    fn a_path_as_deep_as_any_is_made_and_taken_back_in_no_time() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("d/".repeat(1900));
        let begun = Instant::now();
        let made = ensure(&deep).unwrap();
        assert!(deep.is_dir() && made.new.len() == 1900);
        made.unmake();
        assert!(std::fs::read_dir(top.path()).unwrap().next().is_none());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[test]
    fn only_what_was_made_and_is_empty_is_taken_back() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("there")).unwrap();
        std::os::unix::fs::symlink("there", top.path().join("link")).unwrap();
        let made = ensure(&top.path().join("link/a/b/c")).unwrap();
        std::fs::write(top.path().join("there/a/file"), "").unwrap();
        made.unmake();
        assert!(top.path().join("there/a/file").exists() && !top.path().join("there/a/b").exists());
        ensure(&top.path().join("there")).unwrap().unmake();
        assert!(top.path().join("there").exists());
        // Gone through, and so used.
        assert!(ensure(&top.path().join("new/../there/x")).is_ok());
        assert!(top.path().join("new").is_dir() && top.path().join("there/x").is_dir());
    }

    #[test]
    fn what_is_no_folder_is_told_and_nothing_is_made_for_it() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", top.path().join("dangling")).unwrap();
        for bad in ["file", "file/a", "dangling/a", "new/../file/x"] {
            assert!(ensure(&top.path().join(bad)).is_err(), "{bad}");
        }
        let long = "n".repeat(300);
        assert!(ensure(&top.path().join("some/new").join(long)).is_err());
        assert!(!top.path().join("some").exists());
    }
}
