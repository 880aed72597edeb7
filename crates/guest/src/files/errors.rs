//! What the system says about a file, as the caller may read it.

use std::fmt;
use std::io;

use warren_types::{Error, ErrorKind};

use crate::spawn::describe;

/// A full disk, as clients tell it apart.
pub(crate) const DISK_FULL: &str = "disk_full";

/// Turns an error about `path` into one for the caller.
pub(crate) fn explain(error: &io::Error, path: &impl fmt::Display) -> Error {
    let text = describe(error);
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::not_found(format!("{path} does not exist")),
        Some(libc::ENOTDIR) => Error::invalid(format!("{path}: a part of it is not a directory")),
        Some(libc::EISDIR) => Error::invalid(format!("{path} is a directory")),
        Some(libc::ELOOP) => Error::invalid(format!("{path} leads through too many symbolic links")),
        Some(libc::ENAMETOOLONG) => Error::invalid(format!("{path} or a part of it is too long")),
        // EIO: what the kernel says of its own files, like /proc/self/mem. A disk that fails is the host's to see.
        Some(libc::EINVAL | libc::EILSEQ | libc::ENXIO | libc::ENODEV | libc::ENOTSUP | libc::EIO) => {
            Error::invalid(format!("{path} cannot be used this way: {text}"))
        }
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => disk_full(path),
        Some(libc::EROFS | libc::EPERM | libc::EACCES | libc::ETXTBSY) => {
            Error::new(ErrorKind::Forbidden, format!("{path} cannot be accessed: {text}"))
        }
        Some(libc::EBUSY) => {
            Error::conflict(format!("{path} is in use by the system, for example as a mount point"))
        }
        Some(libc::ENOTEMPTY | libc::EEXIST) => {
            Error::conflict(format!("{path} changed meanwhile; try again"))
        }
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => {
            Error::unavailable(format!("the sandbox is too busy for {path}: {text}; try again"))
        }
        _ => Error::internal(format!("{path}: {text}")),
    }
}

pub(crate) fn disk_full(path: &impl fmt::Display) -> Error {
    let message = format!("the sandbox's disk has no room for {path}; delete something first");
    Error::new(ErrorKind::TooLarge, message).with_code(DISK_FULL)
}
