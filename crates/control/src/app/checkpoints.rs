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

use warren_api::checkpoints::{Checkpoint, SandboxConfig};
use warren_node_api::SandboxSpec;
use warren_types::{CheckpointId, EgressMode, Error, ErrorKind, SandboxId};

use super::App;
use super::access::remove_given;
use super::audit::Kind;
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
}

pub(crate) fn checkpoint_not_found() -> Error {
    Error::not_found("checkpoint not found")
}

/// Why a checkpoint that is not ready cannot be used.
fn not_ready(row: &CheckpointRow) -> Error {
    match row.status {
        Status::Processing => {
            Error::invalid("checkpoint is not ready: it is still being made; list it until it is `ready`")
        }
        _ => Error::invalid(format!(
            "checkpoint is not ready: it failed: {}",
            row.error.as_deref().unwrap_or("no reason is known")
        )),
    }
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
