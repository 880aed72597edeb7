//! Whom a new file belongs to: the user inside the user's own folders, root elsewhere.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Uid};

use crate::account::Account;

/// Besides the home, if it is a folder of its own and not a link to it.
const WORKSPACE: &str = "/workspace";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    const ROOT: Self = Self { uid: 0, gid: 0 };

    /// The owner of something new at `path`, whose folder exists.
    pub(crate) fn of_new(path: &Path, account: &Account) -> Self {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.map_or(Self::ROOT, |folder| Self::inside(&folder, account))
    }

    pub(crate) fn of_user(account: &Account) -> Self {
        Self { uid: account.user.uid, gid: account.user.gid }
    }

    /// The owner of something new in a folder without symlinks in its path.
    pub(crate) fn inside(folder: &Path, account: &Account) -> Self {
        let is_users = |own: &str| {
            let own = Path::new(own);
            // Some have the root for a home or start in it, and do not own it.
            let is_inside = |own: &Path| own.parent().is_some() && folder.starts_with(own);
            is_inside(own) || own.canonicalize().is_ok_and(|own| is_inside(&own))
        };
        let user = &account.user;
        let own = [user.home.as_str(), WORKSPACE].into_iter().chain(account.workdir.as_deref());
        match own.into_iter().any(is_users) {
            true => Self { uid: user.uid, gid: user.gid },
            false => Self::ROOT,
        }
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

#[cfg(test)]
mod tests {
    use warren_guest_api::boot::User;

    use super::*;

    #[test]
    fn a_user_owns_what_is_new_in_its_own_folders_and_root_the_rest() {
        let owner = |folder: &str, account: &Account| Owner::inside(Path::new(folder), account).uid;
        let usual = Account::default();
        assert_eq!(owner("/home/sandbox/x", &usual), 1000);
        assert_eq!(owner("/workspace", &usual), 1000);
        assert_eq!(owner("/home/sandbox2", &usual), 0);
        assert_eq!(owner("/etc", &usual), 0);
        let user = User { name: "node".into(), uid: 7, gid: 8, home: "/home/node".into() };
        let node = Account { user, workdir: Some("/app".into()) };
        assert_eq!(Owner::inside(Path::new("/app/src"), &node), Owner { uid: 7, gid: 8 });
        assert_eq!(owner("/home/node", &node), 7);
        assert_eq!(owner("/home/sandbox", &node), 0);
        let homeless = Account { user: User { home: "/".into(), ..node.user }, workdir: Some("/".into()) };
        assert_eq!(owner("/etc", &homeless), 0);
        assert_eq!(owner("/workspace/a", &homeless), 7);
    }
}
