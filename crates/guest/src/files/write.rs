//! Writing a file: beside its place under another name, and put there only once it is complete.
//!
//! Whoever reads the old file meanwhile sees all of it; an upload that breaks off leaves nothing behind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};
use warren_types::Error;
use warren_types::error::Result;

use super::errors::{disk_full, explain};
use super::{Owner, check_is_file, make_folders, unmake_folders};
use crate::account::Account;
use crate::paths::GuestPath;

const NEW_MODE: u32 = 0o644;
/// Symlinks followed from the last name of a path.
const MAX_LINKS: usize = 40;

/// A file under way. Dropping it takes everything back.
pub(crate) struct Upload {
    path: GuestPath,
    folder: OwnedFd,
    /// Where it will be, in that folder.
    name: OsString,
    /// Where it is until then.
    unfinished: String,
    file: File,
    owner: Owner,
    mode: u32,
    made: Vec<PathBuf>,
    complete: bool,
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
    let made = make_folders(&path, parent, account)?;
    let opened = open_unfinished(parent, length, &path);
    let (folder, unfinished, file) = opened.inspect_err(|_| unmake_folders(&made))?;
    let owner = match &present {
        Some(meta) => Owner { uid: meta.uid(), gid: meta.gid() },
        None => Owner::of_new(target.as_path(), account),
    };
    let mode = mode.or(present.map(|meta| meta.mode() & 0o7777)).unwrap_or(NEW_MODE);
    Ok(Upload { name: name.to_owned(), path, folder, unfinished, file, owner, mode, made, complete: false })
}

/// The path a final symlink leads to, whether there is something or not.
fn follow(path: &GuestPath) -> Result<GuestPath> {
    let mut target = path.clone();
    for _ in 0..MAX_LINKS {
        match fs::read_link(target.as_path()) {
            Ok(link) => {
                let joined = target.as_path().parent().unwrap_or(Path::new("/")).join(link);
                target = GuestPath::parse(joined.as_os_str().as_encoded_bytes())?;
            }
            // No symlink, or nothing: it is found out later what.
            Err(_) => return Ok(target),
        }
    }
    Err(Error::invalid(format!("{path} leads through too many symbolic links")))
}

fn open_unfinished(parent: &Path, length: Option<u64>, path: &GuestPath) -> Result<(OwnedFd, String, File)> {
    let failed = |error: rustix::io::Errno| explain(&error.into(), path);
    let folder =
        rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
    if let Some(length) = length {
        let free = rustix::fs::fstatvfs(&folder).map_err(failed)?;
        if length > free.f_bavail.saturating_mul(free.f_frsize) {
            return Err(disk_full(path));
        }
    }
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    let name = format!(".warren-upload-{:016x}", u64::from_ne_bytes(random));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, &name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
    Ok((folder, name, file.into()))
}

impl Upload {
    /// Adds bytes at the end.
    pub(crate) fn write(&mut self, pieces: &[Bytes]) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
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
        let failed = |error: rustix::io::Errno| explain(&error.into(), &self.path);
        // The owner first: changing it takes the set-id bits away.
        self.owner.give_file(self.file.as_fd());
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.mode)).map_err(failed)?;
        rustix::fs::renameat(&self.folder, &self.unfinished, &self.folder, &self.name).map_err(failed)?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.complete {
            let _ = rustix::fs::unlinkat(&self.folder, &self.unfinished, AtFlags::empty());
            unmake_folders(&self.made);
        }
    }
}
