//! Checkpoints: made of a sandbox, kept beyond it, gone back to, forked.
//!
//! ```text
//!   insert row `processing` ─▶ node.ensure_checkpoint ─▶ answer when it is captured
//!                                      └─ reports ─▶ row `ready` ─▶ older ones go, where that was asked for
//!   row `deleting` ─▶ node.ensure_checkpoint_absent ─▶ row gone
//! ```
//!
//! A checkpoint has a row before its node hears of it, and until its node has forgotten it. So what a node has without a row is
//! left over, and a row that its node knows nothing of is lost; the reconciler sees to both.

mod create;
pub(in crate::app) mod derive;
mod fork;
pub(crate) mod patches;
mod remove;
mod restore;

use std::sync::Arc;

use warren_api::checkpoints::{Checkpoint, SandboxConfig};
use warren_node_api::{CODE_CHECKPOINT_DAMAGED, SandboxSpec};
use warren_types::{CheckpointId, EgressMode, Error, ErrorKind, SandboxId};

use super::App;
use super::access::remove_given;
use super::audit::{Kind, Who};
use super::auth::Caller;
use crate::store::checkpoints::{CheckpointRow, Status};
use crate::store::sandboxes::SandboxStanding;

impl App {
    /// Newest first; of a deleted sandbox too.
    pub(crate) async fn list_checkpoints(
        &self,
        caller: &Caller,
        sandbox: &SandboxId,
    ) -> Result<Vec<Checkpoint>, Error> {
        self.standing_in_any_state(caller, sandbox).await?;
        let mut views = Vec::new();
        for row in self.store.list_checkpoints(sandbox).await? {
            views.push(self.checkpoint_view(row).await?);
        }
        Ok(views)
    }

    /// A published checkpoint may be forked by anybody who knows its id. Repeating it is fine.
    pub(crate) async fn publish_checkpoint(
        &self,
        caller: &Caller,
        id: &CheckpointId,
        public: bool,
    ) -> Result<Checkpoint, Error> {
        self.find_own_checkpoint(caller, id).await?;
        let row = self.store.set_checkpoint_public(id, public).await?.ok_or_else(checkpoint_not_found)?;
        let note = caller.note(Kind::CheckpointPublish).of(&row.sandbox_id).with("checkpoint", id.as_str());
        self.audit.note(note.with("public", public).with("outcome", "done")).await?;
        self.checkpoint_view(row).await
    }

    async fn checkpoint_view(&self, row: CheckpointRow) -> Result<Checkpoint, Error> {
        let secret_store = match row.access.stores.last() {
            Some(id) => self.store.find_secret_store(&row.org, id).await?.map(|store| store.name),
            None => None,
        };
        Ok(view(row, secret_store))
    }

    /// Whether a sandbox is the caller's, in whatever state.
    pub(crate) async fn check_sandbox(&self, caller: &Caller, id: &SandboxId) -> Result<(), Error> {
        self.standing_in_any_state(caller, id).await.map(drop)
    }

    pub(super) async fn standing_in_any_state(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<SandboxStanding, Error> {
        let found = self.store.find_standing(id).await?;
        found.filter(|found| found.org == *caller.org()).ok_or_else(|| self.not_theirs(caller.who(), id))
    }

    async fn find_own_checkpoint(&self, caller: &Caller, id: &CheckpointId) -> Result<CheckpointRow, Error> {
        let row = self.store.find_checkpoint(id).await?.ok_or_else(checkpoint_not_found)?;
        if row.org != *caller.org() {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "this checkpoint belongs to another organisation; only its owner may do that",
            ));
        }
        Ok(row)
    }

    /// A checkpoint of ours, asked for by way of a sandbox of ours.
    async fn find_checkpoint_of(
        &self,
        caller: &Caller,
        sandbox: &SandboxId,
        id: &CheckpointId,
    ) -> Result<CheckpointRow, Error> {
        let row = self.find_own_checkpoint(caller, id).await?;
        if row.sandbox_id != *sandbox {
            return Err(Error::invalid(format!("the checkpoint is of another sandbox, {}", row.sandbox_id)));
        }
        Ok(row)
    }

    /// Why a checkpoint that is not ready cannot be used, and what can be instead.
    async fn not_ready(&self, caller: &Caller, row: &CheckpointRow) -> Error {
        if row.status == Status::Processing {
            return Error::invalid(
                "checkpoint is not ready: it is still being made; list it until it is `ready`",
            );
        }
        let offered =
            match self.newest_good_beside(row, |other| other.org == *caller.org() || other.is_public).await {
                Ok(Some(other)) => format!("the newest good one of the same sandbox is {}", other.id),
                Ok(None) => "there is no other good one of the same sandbox".to_owned(),
                Err(error) => return error,
            };
        let why = row.error.as_deref().unwrap_or("no reason is known");
        Error::invalid(format!("checkpoint is not ready: it failed: {why}; {offered}"))
            .with_code(CODE_CHECKPOINT_DAMAGED)
    }

    /// What a node has refused to use is refused in the same words as when that is known already.
    async fn refused_by_node(self: &Arc<Self>, caller: &Caller, id: &CheckpointId, error: Error) -> Error {
        if error.code.as_deref() != Some(CODE_CHECKPOINT_DAMAGED) {
            return error;
        }
        let known = async {
            let report = self.node.get_checkpoint(id).await?;
            self.take_checkpoint_report(&report).await?;
            Ok::<_, Error>(self.store.find_checkpoint(id).await?)
        };
        match known.await {
            Ok(Some(row)) if row.status == Status::Failed => self.not_ready(caller, &row).await,
            _ => Error { kind: ErrorKind::Invalid, ..error },
        }
    }

    /// The newest of its sandbox that can be used.
    async fn newest_good_beside(
        &self,
        row: &CheckpointRow,
        may: impl Fn(&CheckpointRow) -> bool,
    ) -> Result<Option<CheckpointRow>, Error> {
        let all = self.store.list_checkpoints(&row.sandbox_id).await?;
        Ok(all.into_iter().find(|other| other.status == Status::Ready && other.id != row.id && may(other)))
    }

    /// Has it recorded that a checkpoint can no longer be used, and what there is instead.
    pub(crate) async fn tell_of_failed_checkpoint(&self, id: &CheckpointId) -> Result<(), Error> {
        let Some(row) = self.store.find_checkpoint(id).await? else { return Ok(()) };
        let other = self.newest_good_beside(&row, |_| true).await?;
        let note = Who::server(row.org.clone()).note(Kind::CheckpointState).of(&row.sandbox_id);
        let note = note.with("checkpoint", id.as_str()).with("state", row.status.as_str());
        let note = note.with("reason", row.error).with("offered", other.map(|other| other.id.to_string()));
        self.audit.tell(note).await;
        Ok(())
    }
}

pub(crate) fn checkpoint_not_found() -> Error {
    Error::not_found("checkpoint not found")
}

fn view(row: CheckpointRow, secret_store: Option<String>) -> Checkpoint {
    let config = row.spec.map(|spec| config(spec, row.metadata, row.alias)).unwrap_or_default();
    let config = SandboxConfig { secret_store, ..config };
    Checkpoint {
        id: row.id.to_string(),
        org_id: row.org.to_string(),
        sandbox_id: row.sandbox_id.to_string(),
        name: row.name,
        kind: row.kind.as_str().to_owned(),
        holds: row.holds,
        status: row.status.as_str().to_owned(),
        captured: row.captured,
        // There is no store beyond the node's own disk yet.
        durable: false,
        location: "local".to_owned(),
        consistency: row.consistency,
        pause_ms: row.pause_us.map(|micros| micros as f64 / 1000.0),
        size_bytes: row.size_bytes,
        is_public: row.is_public,
        sandbox_config: config,
        created_at: row.created_at,
        error_msg: row.error,
        failed_at: row.failed_at,
    }
}

/// What the sandbox was asked for; not what it was given beside that.
fn config(mut spec: SandboxSpec, metadata: warren_types::tags::Tags, alias: Option<String>) -> SandboxConfig {
    remove_given(&mut spec.envs);
    SandboxConfig {
        secret_store: None,
        template_id: Some(spec.template),
        timeout: Some(spec.timeout_seconds),
        envs: spec.envs,
        metadata,
        alias,
        cpu_count: Some(spec.size.cpu_count),
        memory_mb: Some(spec.size.memory_mb),
        disk_mb: Some(spec.size.disk_mb),
        network_enabled: Some(spec.egress.mode != EgressMode::None),
        start_commands: spec.start_commands,
    }
}
