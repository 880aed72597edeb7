//! Patches: scripts that run in every sandbox made from a checkpoint. They are kept here; the node runs them.

use std::sync::Arc;

use jiff::Timestamp;
use warren_api::checkpoints::{Patch, PatchCreate, PatchRun};
use warren_node_api::Patch as NodePatch;
use warren_types::{CheckpointId, Error, SandboxId};

use super::checkpoint_not_found;
use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Caller;
use crate::app::guest::from_node;
use crate::app::turns::Turn;
use crate::store::checkpoints::Status;
use crate::store::patches::PatchRow;

const STRATEGY: &str = "on_wake";
const MAX_DESCRIPTION_BYTES: usize = 4096;
/// Over all patches of one checkpoint: a node is sent them together.
const MAX_SCRIPT_BYTES: usize = 512 * 1024;
const MAX_PATCHES: usize = 200;

impl App {
    pub(crate) async fn create_patch(
        self: &Arc<Self>,
        caller: &Caller,
        id: &CheckpointId,
        body: PatchCreate,
    ) -> Result<Patch, Error> {
        let row = self.find_own_checkpoint(caller, id).await?;
        let script = body.script.filter(|script| !script.trim().is_empty());
        let script = script.ok_or_else(|| Error::invalid("script is required"))?;
        let description = body.description.unwrap_or_default();
        if script.contains('\0') || description.len() > MAX_DESCRIPTION_BYTES {
            return Err(Error::invalid(format!(
                "script must not contain NUL, and description must have at most {MAX_DESCRIPTION_BYTES} bytes"
            )));
        }
        if row.status != Status::Ready {
            return Err(self.not_ready(caller, &row).await);
        }
        let (app, id) = (Arc::clone(self), id.clone());
        let note =
            caller.note(Kind::CheckpointPatch).with("checkpoint", id.as_str()).with("action", "create");
        self.change(note.with("script", script.as_str()), async move {
            let turn = app.patch_turns.turn(&id).await;
            let existing = app.store.list_patches(&id).await?;
            let bytes: usize = existing.iter().map(|patch| patch.script.len()).sum();
            if existing.len() >= MAX_PATCHES || bytes + script.len() > MAX_SCRIPT_BYTES {
                return Err(Error::invalid(format!(
                    "a checkpoint may have {MAX_PATCHES} patches with {MAX_SCRIPT_BYTES} bytes of scripts in all; make a new \
                     checkpoint that has them in it"
                )));
            }
            let patch = app.store.insert_patch(&id, &script, &description).await?;
            let (patch, others) = patch.ok_or_else(checkpoint_not_found)?;
            let sent = app.send_patches(&id, &turn).await;
            if sent.is_err() {
                // Nobody was told of it, and no other list of this checkpoint was sent with it.
                app.store.remove_patch(&id, &patch.id).await?;
            }
            // Each in its own turn: two who held one and waited for the other's would wait for ever.
            drop(turn);
            app.send_patches_soon(&others).await;
            sent?;
            Ok(view(&id, patch))
        })
        .await
    }

    pub(crate) async fn list_patches(&self, caller: &Caller, id: &CheckpointId) -> Result<Vec<Patch>, Error> {
        self.find_own_checkpoint(caller, id).await?;
        Ok(self.store.list_patches(id).await?.into_iter().map(|patch| view(id, patch)).collect())
    }

    pub(crate) async fn delete_patch(
        self: &Arc<Self>,
        caller: &Caller,
        id: &CheckpointId,
        patch: String,
    ) -> Result<(), Error> {
        self.find_own_checkpoint(caller, id).await?;
        let (app, id) = (Arc::clone(self), id.clone());
        let note =
            caller.note(Kind::CheckpointPatch).with("checkpoint", id.as_str()).with("action", "delete");
        self.change(note.with("patch", patch.as_str()), async move {
            let turn = app.patch_turns.turn(&id).await;
            let removed = app.store.remove_patch(&id, &patch).await?;
            drop(turn);
            if removed.is_empty() {
                return Err(Error::not_found("patch not found"));
            }
            app.send_patches_soon(&removed).await;
            Ok(())
        })
        .await
    }

    /// Tells the node again which patches a checkpoint has.
    pub(crate) async fn send_patches_again(&self, id: &CheckpointId) -> Result<(), Error> {
        let turn = self.patch_turns.turn(id).await;
        self.send_patches(id, &turn).await
    }

    /// Whole lists are sent, so one at a time: an older one that came last would undo a newer one, and one with a patch that is
    /// then refused would have it run.
    async fn send_patches(&self, id: &CheckpointId, _turn: &Turn<CheckpointId>) -> Result<(), Error> {
        let patches = self.store.list_patches(id).await?;
        let patches: Vec<NodePatch> = patches
            .into_iter()
            .map(|patch| NodePatch { sequence: patch.sequence, script: patch.script })
            .collect();
        self.node.ensure_patches(id, &patches).await.map_err(from_node)
    }

    /// The same of several; what does not go now, the reconciler sends.
    pub(crate) async fn send_patches_soon(&self, ids: &[CheckpointId]) {
        for id in ids {
            if let Err(error) = self.send_patches_again(id).await {
                tracing::warn!(checkpoint = %id, %error, "a node does not know the patches of a checkpoint; trying again soon");
            }
        }
    }

    /// How patches went in a sandbox, oldest first.
    pub(crate) async fn list_patch_runs(
        &self,
        caller: &Caller,
        sandbox: &SandboxId,
    ) -> Result<Vec<PatchRun>, Error> {
        self.usable_standing(caller, sandbox).await?;
        let runs = self.node.list_patch_runs(sandbox).await.map_err(from_node)?;
        runs.into_iter()
            .map(|run| {
                let at = i64::try_from(run.started_at_ms).ok();
                let at = at.and_then(|ms| Timestamp::from_millisecond(ms).ok());
                Ok(PatchRun {
                    sequence: run.sequence,
                    exit_code: run.exit_code,
                    stdout: run.stdout,
                    stderr: run.stderr,
                    started_at: at.ok_or_else(|| Error::internal("a node sent a time that cannot be"))?,
                    error: run.error,
                })
            })
            .collect()
    }
}

fn view(checkpoint: &CheckpointId, patch: PatchRow) -> Patch {
    Patch {
        id: patch.id,
        checkpoint_id: checkpoint.to_string(),
        sequence: patch.sequence,
        script: patch.script,
        description: patch.description,
        strategy: STRATEGY.to_owned(),
        created_at: patch.created_at,
    }
}
