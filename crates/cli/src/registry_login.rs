//! Who asks a registry for an image.

use std::io::Read as _;

use anyhow::Context as _;
use clap::Args;
use warren_api::images::RegistryLogin;

use crate::failure::usage;

/// More than any password.
const MAX_PASSWORD_BYTES: u64 = 64 * 1024;

#[derive(Args)]
pub(crate) struct RegistryArgs {
    /// Who asks the registry; with --registry-password-stdin
    #[arg(long, value_name = "USER", requires = "registry_password_stdin")]
    registry_user: Option<String>,
    /// Read the password for the registry from stdin
    #[arg(long, requires = "registry_user")]
    registry_password_stdin: bool,
}

impl RegistryArgs {
    /// The password is what stdin holds, without the line end that `echo` adds. `source` is what the image comes from.
    pub(crate) fn read(self, source: &str) -> anyhow::Result<Option<RegistryLogin>> {
        let Some(username) = self.registry_user else { return Ok(None) };
        if source == "-" {
            return Err(usage("stdin cannot be both the manifest and the password"));
        }
        let mut password = String::new();
        std::io::stdin()
            .lock()
            .take(MAX_PASSWORD_BYTES)
            .read_to_string(&mut password)
            .context("could not read the password from stdin")?;
        let end = password.trim_end_matches(['\r', '\n']).len();
        password.truncate(end);
        if password.is_empty() {
            return Err(usage("stdin holds no password"));
        }
        Ok(Some(RegistryLogin { username, password }))
    }
}
