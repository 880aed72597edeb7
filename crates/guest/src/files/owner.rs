//! Whom a new file belongs to: the user inside the user's own folders, root elsewhere.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Uid};
use warren_guest_api::boot::{GID, HOME, UID};

/// Besides the home, if it is a folder of its own and not a link to it.
const WORKSPACE: &str = "/workspace";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    const USER: Self = Self { uid: UID, gid: GID };
    const ROOT: Self = Self { uid: 0, gid: 0 };

    /// The owner of something new at `path`, whose folder exists.
    pub(crate) fn of_new(path: &Path) -> Self {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.map_or(Self::ROOT, |folder| Self::inside(&folder))
    }

    /// The owner of something new in a folder without symlinks in its path.
    pub(crate) fn inside(folder: &Path) -> Self {
        let is_users = |own: &str| {
            folder.starts_with(own) || Path::new(own).canonicalize().is_ok_and(|own| folder.starts_with(own))
        };
        if is_users(HOME) || is_users(WORKSPACE) { Self::USER } else { Self::ROOT }
    }

    /// Makes it the owner, where the agent may.
    pub(crate) fn give(self, path: &Path) {
        let (uid, gid) = self.ids();
        let _ = rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
    }

    /// As [`Owner::give`], for an open file.
    pub(crate) fn give_file(self, file: impl AsFd) {
        let (uid, gid) = self.ids();
        let _ = rustix::fs::fchown(file, uid, gid);
    }

    pub(crate) fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}
