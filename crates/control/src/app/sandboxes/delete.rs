//! Delete: the row is `stopped` first, then the node is told. From that moment the owner sees it stopped; what is
//! left on the node is removed now, or by the reconciler.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;
use warren_types::{Error, SandboxId};

use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::{Caller, sandbox_not_found};

/// How long a delete waits for the node before it goes on in the background.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a node may take to remove a sandbox before the reconciler has another go.
const NODE_DEADLINE: Duration = Duration::from_secs(60);

impl App {
    /// Deleting what is deleted already is fine.
    pub(crate) async fn delete_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<(), Error> {
        let (app, org, id) = (Arc::clone(self), caller.org().clone(), id.clone());
        self.change(caller.note(Kind::SandboxKill).of(&id), async move {
            if app.store.mark_deleted(&org, &id).await? {
                app.remove_from_node(&id).await;
                app.store.remove_previews(&id).await?;
                return Ok(());
            }
            match app.store.find_standing(&id).await? {
                Some(found) if found.org == org => Ok(()),
                _ => Err(sandbox_not_found()),
            }
        })
        .await
    }

    async fn remove_from_node(self: &Arc<Self>, id: &SandboxId) {
        let (app, id) = (Arc::clone(self), id.clone());
        let removal = self.tasks.spawn(
            async move {
                if let Err(error) = app.ensure_absent(&id).await {
                    tracing::warn!(sandbox = %id, %error, "a deleted sandbox is still on its node; trying again soon");
                }
            }
            .in_current_span(),
        );
        // Longer than this, or a panic in there: the row says `stopped`, and the reconciler sees to the rest.
        let _ = tokio::time::timeout(ANSWER_WITHIN, removal).await;
    }

    /// Removes a sandbox from its node.
    pub(crate) async fn ensure_absent(&self, id: &SandboxId) -> Result<(), Error> {
        tokio::time::timeout(NODE_DEADLINE, self.node.ensure_absent(id))
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to remove the sandbox")))
    }
}
