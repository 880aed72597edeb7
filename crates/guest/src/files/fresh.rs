//! A new file that has no name before it is complete, so that nothing is left of one whose maker ends half-way, however it does.
//!
//! Not every file system can keep a file without a name: an overlay cannot before Linux 6.10. There it has one, which is
//! noted before the file is made, as a symlink of that name to the folder; the next agent removes what is still noted at its
//! start.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

const PREFIX: &str = ".warren-upload-";

/// Where names are noted. A process has one agent.
static NOTES: OnceLock<PathBuf> = OnceLock::new();

/// Removes what an agent that ended half-way has left, and has what comes noted in the folder `notes`.
pub(crate) fn tidy_up(notes: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(notes)?;
    sweep(notes)?;
    let _ = NOTES.set(notes.to_owned());
    Ok(())
}

fn sweep(notes: &Path) -> io::Result<()> {
    for note in fs::read_dir(notes)?.flatten() {
        let name = note.file_name();
        if name.to_string_lossy().starts_with(PREFIX)
            && let Ok(folder) = fs::read_link(note.path())
        {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let straight = ResolveFlags::NO_SYMLINKS;
            // The folder may have gone, or another be in its place, which has no such file.
            if let Ok(folder) = rustix::fs::openat2(CWD, &folder, flags, Mode::empty(), straight) {
                let _ = rustix::fs::unlinkat(&folder, &name, AtFlags::empty());
            }
        }
        let _ = fs::remove_file(note.path());
    }
    Ok(())
}

/// Has it known at the next start that a file of that name is in that folder.
fn note(notes: Option<&Path>, folder: &impl AsFd, name: &str) {
    let Some(notes) = notes else { return };
    let itself = format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd());
    // An upload is worth more than what may be left of it.
    let _ = fs::read_link(itself).and_then(|folder| std::os::unix::fs::symlink(folder, notes.join(name)));
}

/// Names tried for the moment in which it has one and is not in its place.
const TRIES: usize = 16;

/// Dropping it takes it back.
pub(crate) struct Fresh<F: AsFd> {
    folder: F,
    pub(crate) file: File,
    /// Where it is, on a file system that cannot keep a file without a name.
    name: Option<String>,
    /// Where that is noted.
    noted: Option<PathBuf>,
}

impl<F: AsFd> Fresh<F> {
    pub(crate) fn make(folder: F) -> Result<Self> {
        let (mode, flags) = (Mode::from_raw_mode(0o600), OFlags::WRONLY | OFlags::CLOEXEC);
        if let Ok(file) = rustix::fs::openat(&folder, c".", flags | OFlags::TMPFILE, mode) {
            return Ok(Self { folder, file: file.into(), name: None, noted: None });
        }
        Self::named(folder, NOTES.get().map(PathBuf::as_path))
    }

    fn named(folder: F, notes: Option<&Path>) -> Result<Self> {
        let name = unfinished_name()?;
        let noted = notes.map(|notes| notes.join(&name));
        note(notes, &folder, &name);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        match rustix::fs::openat(&folder, &name, flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => Ok(Self { folder, file: file.into(), name: Some(name), noted }),
            Err(error) => {
                noted.map(fs::remove_file);
                Err(error)
            }
        }
    }

    /// Puts it in its place, and whatever is there away.
    pub(crate) fn put(mut self, name: &OsStr) -> Result<()> {
        let unfinished = match self.name.take() {
            Some(unfinished) => unfinished,
            None => match self.link(name) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => self.link_unfinished()?,
                Err(error) => return Err(error),
            },
        };
        let put = rustix::fs::renameat(&self.folder, &unfinished, &self.folder, name);
        if put.is_err() {
            self.name = Some(unfinished);
        }
        put
    }

    fn link_unfinished(&self) -> Result<String> {
        let mut tries = 0;
        loop {
            let name = unfinished_name()?;
            match self.link(OsStr::new(&name)) {
                Err(Errno::EXIST) if tries < TRIES => tries += 1,
                linked => return linked.map(|()| name),
            }
        }
    }

    fn link(&self, name: &OsStr) -> Result<()> {
        let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, itself, &self.folder, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl<F: AsFd> Drop for Fresh<F> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        }
        if let Some(noted) = &self.noted {
            let _ = fs::remove_file(noted);
        }
    }
}

/// A name for what is not complete yet, beside its place.
pub(crate) fn unfinished_name() -> Result<String> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    fn names(folder: &std::path::Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn one_that_has_to_have_a_name_is_gone_after_the_next_start() {
        let (folder, notes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let named = || {
            let descriptor = OwnedFd::from(File::open(folder.path()).unwrap());
            Fresh::named(descriptor, Some(notes.path())).unwrap()
        };
        let mut whole = named();
        whole.file.write_all(b"whole").unwrap();
        whole.put(OsStr::new("place")).unwrap();
        drop(named());
        assert_eq!((names(folder.path()), names(notes.path())), (vec!["place".to_owned()], vec![]));

        // Its agent ends.
        std::mem::forget(named());
        std::mem::forget(named());
        assert_eq!((names(folder.path()).len(), names(notes.path()).len()), (3, 2));
        // Of a folder that has gone, and one that is a way to elsewhere by now.
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(folder.path(), &elsewhere).unwrap();
        for (name, leads_to) in [("a", Path::new("/nowhere")), ("b", &elsewhere)] {
            let name = format!("{PREFIX}{name}");
            fs::write(folder.path().join(&name), "somebody's").unwrap();
            std::os::unix::fs::symlink(leads_to, notes.path().join(name)).unwrap();
        }
        sweep(notes.path()).unwrap();
        let left = [format!("{PREFIX}a"), format!("{PREFIX}b"), "elsewhere".into(), "place".into()];
        assert_eq!((names(folder.path()), names(notes.path())), (left.to_vec(), vec![]));
    }

    #[test]
    fn it_has_no_name_before_its_place_and_replaces_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let descriptor = || OwnedFd::from(File::open(folder.path()).unwrap());
        for text in ["first", "second"] {
            let mut fresh = Fresh::make(descriptor()).unwrap();
            fresh.file.write_all(text.as_bytes()).unwrap();
            assert!(
                !names(folder.path()).iter().any(|name| name.starts_with(".warren")),
                "{:?}",
                names(folder.path())
            );
            fresh.put(OsStr::new("place")).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join("place")).unwrap(), text);
            assert_eq!(names(folder.path()), ["place"]);
        }
        fs::create_dir(folder.path().join("taken")).unwrap();
        assert_eq!(Fresh::make(descriptor()).unwrap().put(OsStr::new("taken")), Err(Errno::ISDIR));
        drop(Fresh::make(descriptor()).unwrap());
        assert_eq!(names(folder.path()), ["place", "taken"]);
    }
}
