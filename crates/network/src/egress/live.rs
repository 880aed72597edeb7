//! What is looked for in a stream: that of the secrets in force now, whatever they were when the stream began.

use std::sync::Arc;

use super::secrets::{Secrets, Substitutes};
use super::session::Session;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sought {
    /// In what a sandbox sends.
    Tokens,
    /// In what a host says.
    Values,
}

/// Asked for at every piece of a stream to or from one host. As long as nothing changes that costs next to nothing.
pub(crate) struct Live {
    session: Arc<Session>,
    host: String,
    sought: Sought,
    secrets: Option<Arc<Secrets>>,
    substitutes: Option<Arc<Substitutes>>,
}

impl Live {
    pub(crate) fn new(session: Arc<Session>, host: String, sought: Sought) -> Self {
        Self { session, host, sought, secrets: None, substitutes: None }
    }

    /// None when there is nothing to look for.
    pub(crate) fn current(&mut self) -> Option<Arc<Substitutes>> {
        if self.session.renew(&mut self.secrets) {
            let secrets = self.secrets.as_ref().map(|secrets| secrets.for_host(&self.host));
            self.substitutes = secrets.and_then(|secrets| match self.sought {
                Sought::Tokens => secrets.body.clone(),
                Sought::Values => secrets.seal.clone(),
            });
        }
        self.substitutes.clone()
    }
}
