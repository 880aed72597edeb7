//! Who and where a command is: its user, its groups, its variables.
//!
//! Variables come from four places, the later ones winning: what every command has, `/etc/environment` of the
//! template, the sandbox's own, the command's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;

use warren_guest_api::boot::{Boot, GID, HOME, PATH, UID, USER};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use crate::accounts::{self, Parsed};
use crate::sys::Identity;

pub(crate) type Variables = BTreeMap<String, String>;

pub(crate) struct Environment {
    sandbox: RefCell<Variables>,
    template: Parsed<Vec<(String, String)>>,
    groups: Parsed<Vec<u32>>,
    shell: Parsed<Option<String>>,
    /// Whether this program may change who it is; only an agent started by hand may not.
    is_root: bool,
}

impl Environment {
    pub(crate) fn new(variables: Variables) -> Self {
        Self {
            sandbox: RefCell::new(variables),
            template: Parsed::new("/etc/environment", accounts::environment),
            groups: Parsed::new("/etc/group", |text| accounts::groups_of(USER, text)),
            shell: Parsed::new("/etc/passwd", |text| accounts::shell_of(UID, text)),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// Takes the settings of the sandbox that this machine has become; for what is started from here on.
    pub(crate) fn renew(&self, boot: Boot) {
        self.sandbox.replace(boot.envs);
    }

    /// Everything a command with these variables of its own sees.
    pub(crate) fn variables(&self, own: &Variables) -> Variables {
        let base =
            [("HOME", HOME), ("USER", USER), ("LOGNAME", USER), ("PATH", PATH), ("LANG", "en_US.UTF-8")];
        let mut variables: Variables = base.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        variables.insert("SHELL".to_owned(), self.shell.get().unwrap_or_else(|| "/bin/bash".to_owned()));
        variables.extend(self.template.get());
        variables.extend(self.sandbox.borrow().clone());
        variables.extend(own.clone());
        variables
    }

    /// The user's groups, to be given to [`Environment::identity`].
    pub(crate) fn groups(&self) -> Vec<u32> {
        let mut groups = vec![GID];
        groups.extend(self.groups.get().into_iter().filter(|&group| group != GID));
        groups
    }

    pub(crate) fn identity<'a>(&self, groups: &'a [u32]) -> Option<Identity<'a>> {
        self.is_root.then_some(Identity { uid: UID, gid: GID, groups })
    }
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
