//! Deleting a file or a whole folder.
//!
//! Symlinks are removed, never followed. The walk holds two descriptors however deep the tree is, and goes back up only
//! into the folder it came from, so that a tree that is moved about meanwhile cannot lead it elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use warren_types::Error;
use warren_types::error::Result;

use super::errors::explain;
use crate::paths::GuestPath;

/// How often a folder that fills up again while it is emptied is tried.
const MAX_ROUNDS: u32 = 100;

/// Removes `path` with everything below. What is not there is removed already.
pub(crate) fn remove(path: &GuestPath) -> Result<()> {
    if path.as_path().canonicalize().is_ok_and(|path| path == Path::new("/")) {
        return Err(Error::invalid("the root directory cannot be deleted"));
    }
    let Some((parent, name)) = path.split() else {
        return Err(Error::invalid(format!("{path} must not end with `..`")));
    };
    let parent = match rustix::fs::openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(explain(&error.into(), path)),
    };
    if path.says_folder() {
        // It must be one itself: what a link leads to is not deleted by the link's name.
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {}
            Ok(_) => return Err(Error::invalid(format!("{path} ends in a slash and is no directory"))),
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(explain(&error.into(), path)),
        }
    }
    let name =
        CString::new(name.as_encoded_bytes()).map_err(|_| Error::invalid("path contains a NUL byte"))?;
    match remove_at(&parent, &name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(explain(&io::Error::from(error), path)),
    }
}

fn remove_at(parent: &OwnedFd, name: &CString) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        // Was no folder after all, and may not be removed.
        Err(Errno::NOTDIR) => return Err(Errno::PERM),
        done => return done,
    }
    for _ in 0..MAX_ROUNDS {
        empty(open_folder(parent, name)?)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::NOTEMPTY)
}

fn open_folder(parent: impl AsFd, name: &CString) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Empties a folder: goes down to the first folder it meets, and comes back up to remove it.
fn empty(top: OwnedFd) -> rustix::io::Result<()> {
    let mut above: Vec<(Identity, CString)> = Vec::new();
    let mut here = top;
    let mut stuck = 0;
    loop {
        if let Some(name) = unlink_files(&here)? {
            let inner = match open_folder(&here, &name) {
                Ok(inner) => inner,
                // It has become something else, or nothing.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if stuck < MAX_ROUNDS => {
                    stuck += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            above.push((identity(&here)?, name));
            here = inner;
            continue;
        }
        let Some((expected, name)) = above.pop() else { return Ok(()) };
        let outer = rustix::fs::openat(
            &here,
            c"..",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if identity(&outer)? != expected {
            return Err(Errno::NOTEMPTY);
        }
        here = outer;
        match rustix::fs::unlinkat(&here, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => stuck = 0,
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) if stuck < MAX_ROUNDS => stuck += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes what is no folder; the name of the first folder that is not empty, if there is one.
fn unlink_files(folder: &OwnedFd) -> rustix::io::Result<Option<CString>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let removed = match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR),
            done => done,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.to_owned())),
            Err(Errno::NOTDIR) => return Err(Errno::PERM),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

type Identity = (u64, u64);

fn identity(folder: &OwnedFd) -> rustix::io::Result<Identity> {
    let stat = rustix::fs::fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn path(path: &Path) -> GuestPath {
        GuestPath::parse(path.as_os_str().as_bytes()).unwrap()
    }

    #[test]
    fn trees_of_any_shape_go_and_symlinks_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let tree = folder.path().join("tree");
        for number in 0..20 {
            std::fs::create_dir_all(tree.join(format!("a{number}/b/c"))).unwrap();
            std::fs::write(tree.join(format!("a{number}/b/file")), "x").unwrap();
            std::os::unix::fs::symlink(&kept, tree.join(format!("a{number}/b/link"))).unwrap();
        }
        remove(&path(&tree)).unwrap();
        assert!(!tree.exists());
        remove(&path(&tree)).unwrap();
        std::os::unix::fs::symlink(&kept, &tree).unwrap();
        remove(&path(&tree)).unwrap();
        assert!(tree.symlink_metadata().is_err());
        assert_eq!(std::fs::read(kept.join("file")).unwrap(), b"x");
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes() {
        let folder = tempfile::tempdir().unwrap();
        let name = c"dddddddddddddddddddddddddddddddddddddddd";
        let top = folder.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let mut here = rustix::fs::open(&top, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)).unwrap();
            here = open_folder(&here, &name.to_owned()).unwrap();
        }
        remove(&path(&top)).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn the_root_is_refused_by_any_name() {
        for name in ["/", "/etc/..", "/usr/../", "//"] {
            assert!(remove(&GuestPath::parse(name.as_bytes()).unwrap()).is_err(), "{name}");
        }
    }
}
