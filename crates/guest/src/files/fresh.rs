//! A new file that has no name before it is complete, so that nothing is left of one whose maker ends half-way, however it does.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

/// Names tried for the moment in which it has one and is not in its place.
const TRIES: usize = 16;

/// Dropping it takes it back.
pub(crate) struct Fresh<F: AsFd> {
    folder: F,
    pub(crate) file: File,
    /// Where it is, on a file system that cannot keep a file without a name.
    name: Option<String>,
}

impl<F: AsFd> Fresh<F> {
    pub(crate) fn make(folder: F) -> Result<Self> {
        let (mode, flags) = (Mode::from_raw_mode(0o600), OFlags::WRONLY | OFlags::CLOEXEC);
        if let Ok(file) = rustix::fs::openat(&folder, c".", flags | OFlags::TMPFILE, mode) {
            return Ok(Self { folder, file: file.into(), name: None });
        }
        let name = unfinished_name()?;
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&folder, &name, flags, mode)?;
        Ok(Self { folder, file: file.into(), name: Some(name) })
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
    }
}

/// A name for what is not complete yet, beside its place.
pub(crate) fn unfinished_name() -> Result<String> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".warren-upload-{:016x}", u64::from_ne_bytes(random)))
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
