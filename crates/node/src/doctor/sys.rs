//! The two system calls of the checks that have no safe wrapper.

#![expect(unsafe_code, reason = "unshare and mount_setattr")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread mounts of its own. The thread must end afterwards, not serve others.
pub(super) fn own_mounts() -> io::Result<()> {
    // SAFETY: takes no pointers; a thread that leaves its mount namespace keeps its memory and descriptors.
    check(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_NEWNS) }))
}

/// Maps the owners of files seen through `mount` as `user_namespace` does. The mount must not be attached yet.
pub(super) fn idmap_mount(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the path is a static C string, and the attributes live through the call with their true size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
}
