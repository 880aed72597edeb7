//! Who and where a command is: its user, its groups, its variables.
//!
//! Variables come from four places, the later ones winning: what every command has, `/etc/environment` of the
//! template, the sandbox's own, the command's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use warren_guest_api::boot::{Boot, PATH, User};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use crate::account::Account;
use crate::accounts::{self, Members, Parsed, Shells};
use crate::sys::Identity;

pub(crate) type Variables = BTreeMap<String, String>;

/// What the base template has, and what any other image can be taken to have.
const LOCALE: &str = "en_US.UTF-8";
const PLAIN_LOCALE: &str = "C.UTF-8";

pub(crate) struct Environment {
    sandbox: RefCell<Variables>,
    account: RefCell<Arc<Account>>,
    template: Parsed<Vec<(String, String)>>,
    members: Parsed<Members>,
    shells: Parsed<Shells>,
    /// Whether this program may change who it is; only an agent started by hand may not.
    is_root: bool,
}

/// Who a program is run as.
pub(crate) struct Login {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Environment {
    /// That of a sandbox; with no `boot` that of a machine which belongs to none yet.
    pub(crate) fn new(boot: Option<Boot>) -> Self {
        let account = boot.as_ref().map(Account::from).unwrap_or_default();
        Self {
            sandbox: RefCell::new(boot.map(|boot| boot.envs).unwrap_or_default()),
            account: RefCell::new(Arc::new(account)),
            template: Parsed::new("/etc/environment", accounts::environment),
            members: Parsed::new("/etc/group", accounts::members),
            shells: Parsed::new("/etc/passwd", accounts::shells),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// Takes the settings of the sandbox that this machine has become; for what is started from here on.
    pub(crate) fn renew(&self, boot: Boot) {
        self.account.replace(Arc::new(Account::from(&boot)));
        self.sandbox.replace(boot.envs);
    }

    /// Whose commands and files are.
    pub(crate) fn account(&self) -> Arc<Account> {
        self.account.borrow().clone()
    }

    /// Everything a command of this account with these variables of its own sees.
    pub(crate) fn variables(&self, account: &Account, own: &Variables) -> Variables {
        let user = &account.user;
        let locale = if *user == User::default() { LOCALE } else { PLAIN_LOCALE };
        let base = [("HOME", user.home.as_str()), ("PATH", PATH), ("LANG", locale)];
        let names = [("USER", user.name.as_str()), ("LOGNAME", user.name.as_str())];
        // An image may run as a number that nobody has given a name.
        let names = names.into_iter().filter(|(_, name)| !name.is_empty());
        let mut variables: Variables =
            base.into_iter().chain(names).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        variables.insert("SHELL".to_owned(), self.shell(user.uid));
        variables.extend(self.template.get());
        variables.extend(self.sandbox.borrow().clone());
        variables.extend(own.clone());
        variables
    }

    fn shell(&self, uid: u32) -> String {
        self.shells.get().get(&uid).cloned().unwrap_or_else(|| default_shell().to_owned())
    }

    /// What it takes to become this account, where this program may.
    pub(crate) fn login(&self, account: &Account) -> Option<Login> {
        let User { name, uid, gid, .. } = &account.user;
        let mut groups = vec![*gid];
        if let Some(others) = self.members.get().get(name) {
            groups.extend(others.iter().filter(|group| *group != gid));
        }
        self.is_root.then_some(Login { uid: *uid, gid: *gid, groups })
    }
}

impl Login {
    pub(crate) fn identity(&self) -> Identity<'_> {
        Identity { uid: self.uid, gid: self.gid, groups: &self.groups }
    }
}

/// The shell of terminals and of users who have none of their own.
pub(crate) fn default_shell() -> &'static str {
    if Path::new("/bin/bash").is_file() { "/bin/bash" } else { "/bin/sh" }
}

/// Refuses names no program could be given.
pub(crate) fn check_names(variables: &Variables) -> Result<()> {
    for name in variables.keys() {
        if name.is_empty() || name.contains('=') {
            return Err(Error::invalid(format!("{name:?} cannot be the name of an environment variable")));
        }
    }
    Ok(())
}

/// The `NAME=value` strings of an `execve`.
pub(crate) fn to_strings(variables: &Variables) -> Result<Vec<CString>> {
    variables
        .iter()
        .map(|(name, value)| c_string("an environment variable", format!("{name}={value}")))
        .collect()
}

pub(crate) fn c_string(what: &str, text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(ErrorKind::Invalid, format!("{what} contains a NUL byte")))
}
