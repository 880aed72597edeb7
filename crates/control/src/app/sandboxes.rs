//! Sandboxes: create, read, change, delete.

pub(crate) mod create;
mod delete;
mod lifecycle;
pub(crate) mod list;
pub(crate) mod request;
mod view;

use warren_api::sandboxes::Sandbox;
use warren_types::{Error, SandboxId};

use super::App;
use super::auth::{Caller, sandbox_not_found};

/// Longest idle time-out: a year.
const MAX_TIMEOUT_SECONDS: u32 = 366 * 24 * 60 * 60;

impl App {
    /// Neither wakes the sandbox nor counts as use.
    pub(crate) async fn get_sandbox(
        &self,
        caller: &Caller,
        id: &SandboxId,
        base: &str,
    ) -> Result<Sandbox, Error> {
        let row = self.store.find_sandbox(caller.org(), id).await?.ok_or_else(sandbox_not_found)?;
        Ok(self.view_with_token(row, base))
    }
}
