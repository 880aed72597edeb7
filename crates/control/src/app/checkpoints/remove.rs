//! Deleting checkpoints: by their owner, and the oldest when a newer one is ready. What was made from them stays.

use std::sync::Arc;
use std::time::Duration;

use warren_node_api::{CheckpointReport, CheckpointState};
use warren_types::{CheckpointId, Error, SandboxId};

use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Caller;

/// How long a node may take to remove a checkpoint before the reconciler has another go.
const NODE_DEADLINE: Duration = Duration::from_secs(60);

impl App {
    pub(crate) async fn delete_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &SandboxId,
        id: &CheckpointId,
    ) -> Result<(), Error> {
        self.standing_in_any_state(caller, sandbox).await?;
        self.find_checkpoint_of(caller, sandbox, id).await?;
        let (app, id) = (Arc::clone(self), id.clone());
        let note = caller.note(Kind::CheckpointDelete).of(sandbox).with("checkpoint", id.as_str());
        self.change(note, async move { app.delete_checkpoint_row(&id).await }).await
    }

    /// Gone for its owner at once; from its node now, or by the reconciler.
    pub(crate) async fn delete_checkpoint_row(&self, id: &CheckpointId) -> Result<(), Error> {
        self.store.mark_checkpoint_deleting(id).await?;
        self.finish_checkpoint_delete(id).await;
        Ok(())
    }

    /// Removes a checkpoint that is marked as deleted from its node, and then its row.
    pub(crate) async fn finish_checkpoint_delete(&self, id: &CheckpointId) {
        let removed = tokio::time::timeout(NODE_DEADLINE, self.node.ensure_checkpoint_absent(id)).await;
        let removed = removed
            .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to remove the checkpoint")));
        let forgotten = match removed {
            Ok(()) => self.store.remove_checkpoint(id).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = forgotten {
            tracing::warn!(checkpoint = %id, %error, "a deleted checkpoint is not gone yet; trying again soon");
        }
    }

    /// Writes down what a node says about a checkpoint, and what follows from it.
    pub(crate) async fn take_checkpoint_report(
        self: &Arc<Self>,
        report: &CheckpointReport,
    ) -> Result<(), Error> {
        // What it is of comes first: a ready checkpoint can be forked. Streams and lists leave it out.
        let origin = match &report.origin {
            Some(origin) => Some(origin.clone()),
            None if report.captured && self.store.lacks_checkpoint_spec(&report.checkpoint_id).await? => {
                self.node.get_checkpoint(&report.checkpoint_id).await?.origin
            }
            None => None,
        };
        if let Some(origin) = origin {
            self.store.set_checkpoint_spec(&report.checkpoint_id, &origin.spec).await?;
        }
        let changed = self.store.apply_checkpoint_report(report).await?;
        self.checkpoint_changed.notify_waiters();
        if changed && report.state == CheckpointState::Failed {
            self.tell_of_failed_checkpoint(&report.checkpoint_id).await?;
        }
        if report.state == CheckpointState::Ready {
            let app = Arc::clone(self);
            self.tasks.spawn(async move {
                if let Err(error) = app.thin_out_checkpoints().await {
                    tracing::warn!(%error, "older checkpoints could not be deleted; trying again soon");
                }
            });
        }
        Ok(())
    }

    /// Deletes the older siblings of checkpoints that were made to replace them and are ready now.
    pub(crate) async fn thin_out_checkpoints(&self) -> Result<(), Error> {
        for newest in self.store.list_retentions_due().await? {
            for id in self.store.retain(&newest).await? {
                tracing::info!(checkpoint = %id, %newest, "deleting a checkpoint that a newer one replaces");
                self.finish_checkpoint_delete(&id).await;
            }
        }
        Ok(())
    }
}
