//! Whose commands and files are.

use std::path::Path;

use warren_guest_api::boot::{Boot, User};

/// Home of root, whoever the sandbox's user is.
const ROOT_HOME: &str = "/root";

/// The user, and where its commands start. As the node has said it; nothing here is looked up in the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: User,
    /// Absolute path.
    pub(crate) workdir: Option<String>,
}

impl Account {
    /// Root, in the same place.
    pub(crate) fn as_root(&self) -> Self {
        let user = User { name: "root".to_owned(), uid: 0, gid: 0, home: ROOT_HOME.to_owned() };
        Self { user, workdir: self.workdir.clone() }
    }

    /// Where something starts that does not say where, with `home` as the user's: a folder that is there.
    pub(crate) fn start_folder<'a>(&'a self, home: &'a str) -> &'a str {
        let places = self.workdir.as_deref().into_iter().chain([home]);
        places.into_iter().find(|place| Path::new(place).is_dir()).unwrap_or("/")
    }
}

impl From<&Boot> for Account {
    fn from(boot: &Boot) -> Self {
        Self { user: boot.user.clone(), workdir: boot.workdir.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_say_where_starts_in_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (workdir, home) = (path("work"), path("home"));
        let account = Account { workdir: Some(workdir.clone()), ..Account::default() };
        assert_eq!(account.start_folder(&home), "/");
        std::fs::create_dir(&home).unwrap();
        assert_eq!(account.start_folder(&home), home);
        std::fs::create_dir(&workdir).unwrap();
        assert_eq!(account.start_folder(&home), workdir);
        assert_eq!(account.as_root().start_folder(&home), workdir);
        assert_eq!(Account::default().start_folder(&home), home);
    }
}
