//! Going back to a checkpoint in place: id, URLs, settings and everything else but the disk stays.

use std::sync::Arc;

use warren_api::checkpoints::Restoring;
use warren_node_api::Restore;
use warren_types::{CheckpointId, Error, SandboxId, SandboxState};

use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Caller;
use crate::store::checkpoints::Status;
use crate::store::sandboxes::Intent;

impl App {
    /// Answers when it is certain to happen; later calls wait for its end. Works on a hibernated sandbox too, which is
    /// how one with a damaged disk is helped, and on one that has failed.
    pub(crate) async fn restore_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &SandboxId,
        id: &CheckpointId,
    ) -> Result<Restoring, Error> {
        let standing = self.standing_in_any_state(caller, sandbox).await?;
        let row = self.find_checkpoint_of(caller, sandbox, id).await?;
        match standing.observed {
            SandboxState::Running | SandboxState::Hibernated | SandboxState::Error => {}
            SandboxState::Creating | SandboxState::Stopped => {
                return Err(Error::invalid(
                    "sandbox must be running to restore a checkpoint; fork it instead",
                ));
            }
        }
        if row.status != Status::Ready {
            return Err(self.not_ready(caller, &row).await);
        }
        let (app, caller, sandbox, id) = (Arc::clone(self), caller.clone(), sandbox.clone(), id.clone());
        let note = caller.note(Kind::CheckpointRestore).of(&sandbox).with("checkpoint", id.as_str());
        self.change(note, async move {
            let restore = Restore { checkpoint_id: id.clone() };
            if let Err(error) = app.on_node(&sandbox, app.node.restore(&sandbox, &restore)).await {
                return Err(app.refused_by_node(&caller, &id, error).await);
            }
            app.store.set_intent(&sandbox, Intent::Running).await?;
            Ok(Restoring {
                sandbox_id: sandbox.to_string(),
                checkpoint_id: id.to_string(),
                status: "restoring".to_owned(),
            })
        })
        .await
    }
}
