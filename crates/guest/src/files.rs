//! Files: what a path is, what is in a folder, making, moving and changing.
//!
//! The agent has root's rights inside the sandbox, so every file can be read and written; new ones belong to the user wherever
//! the user could have made them. Everything here may wait for a disk and is run on worker threads.

pub(crate) mod errors;
pub(crate) mod folders;
pub(crate) mod fresh;
pub(crate) mod list;
mod owner;
pub(crate) mod read;
mod remove;
pub(crate) mod write;

use std::fs::{self, FileType, Metadata, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use warren_guest_api::files::{Chmod, FileKind, Move, Stat, encoded_path};
use warren_types::Error;
use warren_types::error::Result;

use self::errors::explain;
pub(crate) use self::owner::Owner;
pub(crate) use self::remove::remove;
use crate::account::Account;
use crate::paths::GuestPath;

/// What a path is; with `follow`, what a symlink leads to.
pub(crate) fn stat(path: &GuestPath, follow: bool) -> Result<Stat> {
    let found = if follow { fs::metadata(path.as_path()) } else { fs::symlink_metadata(path.as_path()) };
    let meta = found.map_err(|error| explain(&error, path))?;
    let link_target = meta
        .is_symlink()
        .then(|| fs::read_link(path.as_path()).ok())
        .flatten()
        .map(|target| target.to_string_lossy().into_owned());
    let name = path.as_path().file_name().unwrap_or(path.as_path().as_os_str());
    Ok(Stat {
        name: name.to_string_lossy().into_owned(),
        path: path.plain().to_string_lossy().into_owned(),
        encoded_path: unless_text(path.plain().as_os_str().as_bytes()),
        kind: kind(meta.file_type()),
        size: meta.len(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified_at_ms: modified_at_ms(&meta),
        link_target,
    })
}

/// A path that text cannot say, encoded.
fn unless_text(path: &[u8]) -> Option<String> {
    std::str::from_utf8(path).is_err().then(|| encoded_path(path))
}

fn kind(of: FileType) -> FileKind {
    if of.is_file() {
        FileKind::File
    } else if of.is_dir() {
        FileKind::Directory
    } else if of.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    }
}

fn modified_at_ms(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000)
}

/// Says why something that is no regular file cannot be read or replaced as one.
fn check_is_file(meta: &Metadata, path: &GuestPath) -> Result<()> {
    let of = meta.file_type();
    if of.is_file() {
        return Ok(());
    }
    let what = if of.is_dir() {
        "a directory"
    } else if of.is_fifo() {
        "a named pipe"
    } else if of.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Error::invalid(format!("{path} is {what}, not a file")))
}

/// Makes a folder and those above it. One that is there is fine. With `is_users`, one that was not there is the user's wherever
/// it is.
pub(crate) fn make_folder(path: &GuestPath, account: &Account, is_users: bool) -> Result<()> {
    let made = folders::ensure(path, path.as_path(), account)?;
    if is_users {
        made.give_new(Owner::of_user(account));
    }
    Ok(())
}

/// Renames, replacing what is at the new path.
pub(crate) fn rename(from: &GuestPath, to: &GuestPath) -> Result<()> {
    fs::symlink_metadata(from.as_path()).map_err(|error| explain(&error, from))?;
    fs::rename(from.as_path(), to.as_path()).map_err(|error| match error.raw_os_error() {
        Some(libc::EXDEV) => Error::conflict(format!(
            "{from} cannot be renamed to {to}: it is a folder of the template, or the two are on different file systems; \
             copy it and delete the original, as the command `mv` does"
        )),
        Some(libc::ENOTEMPTY | libc::EEXIST) => Error::conflict(format!("{to} is a folder that is not empty")),
        Some(libc::EINVAL) => Error::invalid(format!("{from} cannot be moved into itself")),
        Some(libc::EISDIR) => Error::invalid(format!("{to} is a directory, {from} is not")),
        Some(libc::ENOTDIR) => Error::invalid(format!("{to} is not a directory, or not in one")),
        Some(libc::ENOENT) => Error::not_found(format!("the folder of {to} does not exist")),
        _ => explain(&error, to),
    })
}

pub(crate) fn change_mode(path: &GuestPath, mode: u32) -> Result<()> {
    check_mode(mode)?;
    fs::set_permissions(path.as_path(), Permissions::from_mode(mode)).map_err(|error| explain(&error, path))
}

pub(crate) fn check_mode(mode: u32) -> Result<()> {
    if mode > 0o7777 {
        return Err(Error::invalid("mode must be from 0 to 7777, in octal"));
    }
    Ok(())
}

/// The two requests that name their paths in JSON.
pub(crate) fn apply_move(request: &Move, account: &Account) -> Result<()> {
    let path = |text: &str| GuestPath::below(&account.user.home, text.as_bytes());
    rename(&path(&request.from)?, &path(&request.to)?)
}

pub(crate) fn apply_chmod(request: &Chmod, account: &Account) -> Result<()> {
    change_mode(&GuestPath::below(&account.user.home, request.path.as_bytes())?, request.mode)
}
