//! Writing a file: without a name, and put in its place only once it is complete.
//!
//! Whoever reads the old file meanwhile sees all of it; an upload that breaks off leaves nothing behind.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use super::errors::{disk_full, explain};
use super::folders::{self, Made};
use super::fresh::Fresh;
use super::{Owner, check_is_file};
use crate::account::Account;
use crate::paths::GuestPath;

const NEW_MODE: u32 = 0o644;
/// `PROC_SUPER_MAGIC`.
const PROC: u32 = 0x9fa0;
/// Symlinks followed from the last name of a path.
const MAX_LINKS: usize = 40;

/// A file under way. Dropping it takes everything back.
pub(crate) struct Upload {
    path: GuestPath,
    made: Made,
    /// Where it will be, in that folder.
    name: OsString,
    /// None once it is there.
    fresh: Option<Fresh<OwnedFd>>,
    owner: Owner,
    mode: u32,
}

/// Prepares to write a file; `length` is its size, if that is known.
pub(crate) fn begin(
    path: GuestPath,
    mode: Option<u32>,
    length: Option<u64>,
    account: &Account,
) -> Result<Upload> {
    let target = follow(&path)?;
    let (parent, name) = target.split().ok_or_else(|| Error::invalid(format!("{path} is a directory")))?;
    let present = match fs::symlink_metadata(target.as_path()) {
        Ok(meta) => {
            check_is_file(&meta, &path)?;
            Some(meta)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(explain(&error, &path)),
    };
    if target.says_folder() {
        return Err(Error::invalid(format!("{path} ends in a slash, so it cannot be a file")));
    }
    let mut made = folders::ensure(&path, parent, account)?;
    let fresh = make(&made.folder, length, &path).inspect_err(|_| made.unmake())?;
    let owner = match &present {
        Some(meta) => Owner { uid: meta.uid(), gid: meta.gid() },
        None => made.owner(account),
    };
    let mode = mode.or(present.map(|meta| meta.mode() & 0o7777)).unwrap_or(NEW_MODE);
    Ok(Upload { name: name.to_owned(), path, made, fresh: Some(fresh), owner, mode })
}

/// The path a final symlink leads to, whether there is something or not.
fn follow(path: &GuestPath) -> Result<GuestPath> {
    let mut target = path.clone();
    for _ in 0..MAX_LINKS {
        match fs::read_link(target.as_path()) {
            Ok(link) => {
                if is_made_up(&target) {
                    return Err(Error::invalid(format!(
                        "{path} leads to what a process uses, through a link that the kernel makes up; nothing can be put in its \
                         place, so write to the file by a path of its own"
                    )));
                }
                let joined = target.as_path().parent().unwrap_or(Path::new("/")).join(link);
                target = GuestPath::parse(joined.as_os_str().as_encoded_bytes())?;
            }
            // No symlink, or nothing: it is found out later what.
            Err(_) => return Ok(target),
        }
    }
    Err(Error::invalid(format!("{path} leads through too many symbolic links")))
}

/// Whether a symlink is one of those in `/proc` that lead to what a process uses: what they read as is a description for people, and may
/// be the path of another file here, or of none.
fn is_made_up(link: &GuestPath) -> bool {
    let Some((parent, name)) = link.split() else { return false };
    let opened = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let Ok(folder) = opened else { return false };
    // Its type differs between processors; the number is one of 32 bits on all of them.
    if !rustix::fs::fstatfs(&folder).is_ok_and(|found| found.f_type as u32 == PROC) {
        return false;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let followed = rustix::fs::openat2(&folder, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    followed.is_err_and(|error| error == Errno::LOOP)
}

fn make(folder: &OwnedFd, length: Option<u64>, path: &GuestPath) -> Result<Fresh<OwnedFd>> {
    let failed = |error: Errno| explain(&error.into(), path);
    if let Some(length) = length {
        let space = rustix::fs::fstatvfs(folder).map_err(failed)?;
        // File systems that the kernel makes up have no blocks at all, which says nothing about room.
        if space.f_blocks > 0 && length > space.f_bavail.saturating_mul(space.f_frsize) {
            return Err(disk_full(path));
        }
    }
    let folder = folder.try_clone().map_err(|error| explain(&error, path))?;
    match Fresh::make(folder) {
        Ok(fresh) => Ok(fresh),
        // The folder is open. In some that the kernel makes up, nothing can be made.
        Err(Errno::NOENT) => {
            Err(Error::new(ErrorKind::Forbidden, format!("no file can be made in the folder of {path}")))
        }
        Err(error) => Err(failed(error)),
    }
}

impl Upload {
    /// Adds bytes at the end.
    pub(crate) fn write(&mut self, pieces: &[Bytes]) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        let Some(fresh) = &mut self.fresh else {
            return Err(Error::internal("the file is complete already"));
        };
        while !rest.is_empty() {
            match fresh.file.write_vectored(rest) {
                Ok(0) => return Err(disk_full(&self.path)),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(&error, &self.path)),
            }
        }
        Ok(())
    }

    /// Puts it in its place.
    pub(crate) fn complete(mut self) -> Result<()> {
        let failed = |error: Errno| explain(&error.into(), &self.path);
        let Some(fresh) = &self.fresh else { return Ok(()) };
        // The owner first: changing it takes the set-id bits away.
        self.owner.give_file(fresh.file.as_fd());
        rustix::fs::fchmod(&fresh.file, Mode::from_raw_mode(self.mode)).map_err(failed)?;
        let put = self.fresh.take().map_or(Ok(()), |fresh| fresh.put(&self.name));
        put.map_err(|error| {
            self.made.unmake();
            explain(&error.into(), &self.path)
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // The folders can go when nothing is in them any more.
        if self.fresh.take().is_some() {
            self.made.unmake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn nothing_is_put_where_a_link_of_the_kernels_reads_as_leading() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "kept").unwrap();
        let open = fs::File::open(&file).unwrap();
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&descriptor, &link).unwrap();
        for path in ["/proc/self/exe", "/proc/thread-self/cwd", &descriptor, link.to_str().unwrap()] {
            let path = GuestPath::parse(path.as_bytes()).unwrap();
            let refused = begin(path.clone(), None, None, &Account::default()).err().unwrap();
            assert_eq!(refused.kind, ErrorKind::Invalid);
            assert!(refused.message.contains("the kernel makes up"), "{path}: {refused}");
        }
        // A path may lead through them, and an ordinary link of /proc is one.
        let beside = GuestPath::parse(format!("/proc/self/root{}", file.display()).as_bytes()).unwrap();
        begin(beside, None, None, &Account::default()).unwrap().complete().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"");
        assert!(!is_made_up(&GuestPath::parse(b"/proc/mounts").unwrap()));
        assert!(!is_made_up(&GuestPath::parse(link.as_os_str().as_bytes()).unwrap()));
    }
}
