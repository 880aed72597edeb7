//! Layers and what an image ends in: checkpoints that a build takes. Each is taken by a task of its own, so that a build which
//! is cancelled half-way leaves a whole row or none.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;
use warren_node_api::{CheckpointCopy, SandboxSpec};
use warren_types::{CheckpointId, Error, OrgId, SandboxId};

use super::{Build, Needed};
use crate::app::App;
use crate::app::guest::from_node;
use crate::store::access::AccessRecord;
use crate::store::checkpoints::change::{Inserted, MadeFor, NewCheckpoint};
use crate::store::checkpoints::{CheckpointRow, Kind, Status};

/// How long a checkpoint that is captured may take until it is whole and on the drive.
const READY_WITHIN: Duration = Duration::from_secs(20 * 60);
/// A change that was missed is seen after this.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const COPY_DEADLINE: Duration = Duration::from_secs(120);

/// Of what a checkpoint is made.
#[derive(Debug, Clone)]
pub(super) enum From {
    /// A sandbox of the build.
    Sandbox { id: SandboxId, kind: Kind },
    /// The disk of another checkpoint, with settings of its own.
    Copy { id: CheckpointId, spec: Box<SandboxSpec> },
}

/// What a checkpoint of a build is.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub org: OrgId,
    pub name: String,
    pub made_for: MadeFor,
    pub access: AccessRecord,
    pub from: From,
}

impl App {
    /// Returns when it is captured. Of a build that was cancelled meanwhile nothing stays.
    pub(super) async fn take_for_build(
        self: &Arc<Self>,
        build: &Arc<Build>,
        taken: Taken,
    ) -> Result<CheckpointId, Error> {
        let (app, build) = (Arc::clone(self), Arc::clone(build));
        let taking = async move {
            let id = app.take_now(taken).await?;
            if !build.note_taken(&id) {
                app.remove_unkept(&id).await?;
            }
            Ok(id)
        };
        self.tasks.spawn(taking.in_current_span()).await.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a layer was not taken to its end");
            Err(Error::internal("the server failed while it kept a layer; its log says why"))
        })
    }

    async fn take_now(self: &Arc<Self>, taken: Taken) -> Result<CheckpointId, Error> {
        let (sandbox_id, kind) = match &taken.from {
            From::Sandbox { id, kind } => (id.clone(), *kind),
            From::Copy { .. } => (SandboxId::generate(), Kind::DiskOnly),
        };
        let new = NewCheckpoint {
            id: CheckpointId::generate(),
            org: taken.org,
            sandbox_id,
            node_id: self.node_info().id.clone(),
            name: taken.name,
            kind,
            limit: u32::MAX,
            keep: None,
            metadata: Default::default(),
            alias: None,
            idempotency: None,
            access: taken.access,
            made_for: taken.made_for,
        };
        // The reconciler keeps off while the node has not heard of it.
        let _flight = self.checkpoints_in_flight.begin(&new.id);
        match self.store.insert_checkpoint(&new).await? {
            Inserted::Yes => {}
            Inserted::Taken | Inserted::LimitReached => {
                return Err(Error::unavailable("no row was free for a layer; try again"));
            }
        }
        let made = async {
            let report = match taken.from {
                From::Sandbox { .. } => self.make_on_node(&new).await?,
                From::Copy { id, spec } => {
                    let copy = CheckpointCopy { checkpoint_id: id, spec: *spec };
                    let copied = self.node.ensure_checkpoint_copy(&new.id, &copy);
                    tokio::time::timeout(COPY_DEADLINE, copied)
                        .await
                        .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to copy a layer")))
                        .map_err(from_node)?
                }
            };
            self.take_checkpoint_report(&report).await
        };
        if let Err(error) = made.await {
            self.delete_checkpoint_row(&new.id).await?;
            return Err(error);
        }
        Ok(new.id)
    }

    /// A checkpoint, once it is whole and on the drive.
    pub(super) async fn wait_until_ready(&self, id: &CheckpointId) -> Result<CheckpointRow, Error> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            let changed = self.checkpoint_changed.notified();
            tokio::pin!(changed);
            // Listens from here on, so that nothing is missed between the look and the wait.
            changed.as_mut().enable();
            let row = self.store.find_checkpoint(id).await?;
            let row = row.ok_or_else(|| {
                Error::conflict("a layer was deleted while the image was built; build it again")
            })?;
            match row.status {
                Status::Ready => return Ok(row),
                Status::Processing if tokio::time::Instant::now() < deadline => {}
                Status::Processing => {
                    return Err(Error::unavailable("a layer did not reach the drive in time"));
                }
                Status::Failed | Status::Deleting => {
                    let why = row.error.as_deref().unwrap_or("no reason is known");
                    return Err(Error::unavailable(format!("a layer could not be kept: {why}")));
                }
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
        }
    }

    /// Keeps the state after a step, to be found again by its key. What was found by it before is removed, by the build that
    /// made it where that still needs it.
    pub(super) async fn put_layer(
        &self,
        org: &OrgId,
        key: &str,
        checkpoint: &CheckpointId,
    ) -> Result<(), Error> {
        if let Some(before) = self.store.put_layer(org, key, checkpoint).await?
            && !self.builds.is_needed(&Needed::Checkpoint(before.clone()))
        {
            self.delete_checkpoint_row(&before).await?;
        }
        Ok(())
    }

    /// Removes what a build that has ended has taken and nothing has: it was cancelled before it said so, or others have put their own
    /// in the place of it.
    pub(super) async fn remove_left_over(&self, build: &Build) -> Result<(), Error> {
        let taken = build.taken().take().unwrap_or_default();
        for checkpoint in &taken {
            self.remove_unkept(checkpoint).await?;
        }
        Ok(())
    }

    async fn remove_unkept(&self, checkpoint: &CheckpointId) -> Result<(), Error> {
        if !self.builds.is_needed(&Needed::Checkpoint(checkpoint.clone()))
            && !self.store.is_kept_for_builds(checkpoint).await?
        {
            self.delete_checkpoint_row(checkpoint).await?;
        }
        Ok(())
    }
}
