//! Whom something new belongs to: the user inside the user's own folders and wherever else the user could have made it,
//! root in all other places.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Stat, Uid};

use crate::account::Account;

/// Besides the home, if it is a folder of its own and not a link to it.
const WORKSPACE: &str = "/workspace";

/// Permission bits of a folder.
const SEARCH: u32 = 0o1;
const WRITE: u32 = 0o2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What tells two folders apart.
pub(super) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Owner {
    const ROOT: Self = Self { uid: 0, gid: 0 };

    pub(crate) fn of_user(account: &Account) -> Self {
        Self { uid: account.user.uid, gid: account.user.gid }
    }

    /// The owner of something new in a folder. Looks at the folder and at all above it, through their descriptors, so that
    /// symlinks and the length of the path do not matter.
    pub(crate) fn in_folder(folder: impl AsFd, account: &Account) -> Self {
        let user = Self::of_user(account);
        if user == Self::ROOT { user } else { user.unless_kept_out(folder, account).unwrap_or(Self::ROOT) }
    }

    /// Itself, if the folder is one of the user's, or one in which the user may make something and that the user can reach.
    fn unless_kept_out(self, folder: impl AsFd, account: &Account) -> Option<Self> {
        let own = [account.user.home.as_str(), WORKSPACE].into_iter().chain(account.workdir.as_deref());
        // Some have the root for a home or start in it, and do not own it.
        let root = rustix::fs::stat("/").ok()?;
        let own: Vec<_> = own
            .filter_map(|own| Some(identity(&rustix::fs::stat(Path::new(own)).ok()?)))
            .filter(|own| *own != identity(&root))
            .collect();
        let mut stat = rustix::fs::fstat(&folder).ok()?;
        let mut may = self.may(&stat, WRITE | SEARCH);
        let mut here = None;
        loop {
            if own.contains(&identity(&stat)) {
                return Some(self);
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let above = match &here {
                None => rustix::fs::openat(&folder, c"..", flags, Mode::empty()),
                Some(here) => rustix::fs::openat(here, c"..", flags, Mode::empty()),
            };
            let above = above.ok()?;
            let above_stat = rustix::fs::fstat(&above).ok()?;
            if identity(&above_stat) == identity(&stat) {
                return may.then_some(self);
            }
            may &= self.may(&above_stat, SEARCH);
            (here, stat) = (Some(above), above_stat);
        }
    }

    /// Whether it has these rights to a folder, or can take them since the folder is its own.
    fn may(self, folder: &Stat, rights: u32) -> bool {
        let granted = if self.gid == folder.st_gid { folder.st_mode >> 3 } else { folder.st_mode };
        self.uid == folder.st_uid || granted & rights == rights
    }

    /// For an open file, where the agent may.
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
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use warren_guest_api::boot::User;

    use super::*;

    #[test]
    fn the_user_owns_what_is_new_where_the_user_could_have_made_it_and_root_the_rest() {
        let top = tempfile::tempdir().unwrap();
        let folder = |name: &str, mode: u32| {
            let folder = top.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
            folder.to_str().unwrap().to_owned()
        };
        folder("", 0o755);
        let (home, app) = (folder("home", 0o755), folder("app", 0o700));
        // Neither user nor group of anything here.
        let user = User { name: "node".into(), uid: 54_321, gid: 54_322, home: home.clone() };
        let node = Account { user, workdir: Some(app.clone()) };
        let owner = |folder: &str, account: &Account| {
            let folder = std::fs::File::open(folder).unwrap();
            Owner::in_folder(&folder, account)
        };
        let (nodes, roots) = (Owner { uid: 54_321, gid: 54_322 }, Owner::ROOT);
        for (name, mode, expected) in [
            ("home", 0o755, nodes),
            ("home/below", 0o700, nodes),
            ("app", 0o700, nodes),
            ("home2", 0o755, roots),
            ("open", 0o1777, nodes),
            ("open/closed", 0o755, roots),
            ("unsearchable", 0o666, roots),
            ("hidden", 0o700, roots),
            ("hidden/open", 0o777, roots),
        ] {
            assert_eq!(owner(&folder(name, mode), &node), expected, "{name}");
        }
        std::os::unix::fs::symlink(&home, top.path().join("link")).unwrap();
        assert_eq!(owner(top.path().join("link").to_str().unwrap(), &node), nodes);
        let homeless =
            Account { user: User { home: "/".into(), ..node.user.clone() }, workdir: Some("/".into()) };
        assert_eq!(owner("/etc", &homeless), roots);
        assert_eq!(owner("/etc", &node.as_root()), roots);
    }
}
