//! What a node keeps beside its sandboxes: checkpoints, templates, and the space they take.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::Stream;
use warren_node_api::{
    CheckpointCopy, CheckpointCreate, CheckpointReport, CheckpointState, Holds, Report, Space, TemplateLine,
};
use warren_types::{CheckpointId, Error, Isolation, SandboxId};

use super::Registry;
use crate::sandbox::Handle;
use crate::sandbox::restore::Order;
use crate::space::Files;
use crate::templates::Templates;
use crate::templates::import::Wanted;

impl Registry {
    pub(crate) fn templates(&self) -> &Arc<Templates> {
        &self.host.templates
    }

    /// Brings an image here.
    pub(crate) fn import(&self, wanted: Wanted) -> Result<impl Stream<Item = TemplateLine> + use<>, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::unavailable("the node is stopping"));
        }
        Ok(self.host.templates.import(wanted))
    }

    /// Removes a template; returns once nothing of it is left.
    pub(crate) async fn remove_template(&self, name: &str) -> Result<(), Error> {
        if name == self.config.template.name {
            return Err(Error::conflict(format!(
                "the template {name} is what sandboxes start from; it stays"
            )));
        }
        let templates = &self.host.templates;
        let mut changing = templates.change().await;
        let Some(file_system) = templates.find(name) else { return Ok(()) };
        {
            // Whoever makes a sandbox looks for its template with the same lock held.
            let sandboxes = self.lock();
            let users = self.users_of_templates(&sandboxes).remove(&file_system).unwrap_or_default();
            if users > 0 {
                return Err(Error::conflict(format!(
                    "{users} sandboxes and checkpoints are made from the template {name}; delete them first"
                )));
            }
            changing.forget(name);
        }
        if let Some(vms) = &self.host.vms {
            vms.forget(&self.host, &file_system).await;
        }
        self.host.disks.unmount_template(&file_system).await;
        changing.remove(&file_system).await
    }

    /// How many sandboxes and checkpoints are laid over each template, by its digest.
    fn users_of_templates(&self, sandboxes: &BTreeMap<SandboxId, Handle>) -> BTreeMap<String, u32> {
        let mut users = self.host.checkpoints.count_by_template();
        for handle in sandboxes.values() {
            *users.entry(handle.template_digest.to_string()).or_default() += 1;
        }
        users
    }

    /// What templates and checkpoints take.
    pub(crate) async fn space(&self) -> Result<Space, Error> {
        let users = self.users_of_templates(&self.lock());
        let image = |(digest, name): (String, String)| {
            let users = users.get(&digest).copied().unwrap_or_default();
            (name, (self.host.disks.template_image(&digest), users))
        };
        let files = Files {
            volume: self.host.disks.volume().to_owned(),
            templates: self.host.templates.all_file_systems().into_iter().map(image).collect(),
            checkpoints: self.host.checkpoints.files(),
        };
        let counted = tokio::task::spawn_blocking(move || files.count()).await;
        counted
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| Error::unavailable(format!("the node's volume could not be looked at: {error}")))
    }

    /// Makes a checkpoint, unless it is there.
    pub(crate) async fn ensure_checkpoint(
        &self,
        id: CheckpointId,
        create: CheckpointCreate,
    ) -> Result<CheckpointReport, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::unavailable("the node is stopping"));
        }
        let sandbox = self.get(&create.sandbox_id)?;
        self.host.checkpoints.ensure(id, create, sandbox).await
    }

    /// Makes a checkpoint with the disk of another, unless it is there.
    pub(crate) async fn ensure_checkpoint_copy(
        &self,
        id: CheckpointId,
        copy: CheckpointCopy,
    ) -> Result<CheckpointReport, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::unavailable("the node is stopping"));
        }
        let made = self.host.checkpoints.ensure_copy(id.clone(), copy).await?;
        self.expect_forks(&id);
        Ok(made)
    }

    /// A checkpoint will be forked soon: what its forks start in is prepared from now on, ahead of the first of them.
    /// Without effect on one that is not ready.
    fn expect_forks(&self, checkpoint: &CheckpointId) {
        let Ok(report) = self.host.checkpoints.get(checkpoint) else { return };
        let Some(origin) = report.origin.filter(|_| report.state == CheckpointState::Ready) else { return };
        match (origin.spec.isolation, report.holds, &self.host.vms) {
            (Isolation::Container, ..) => self.host.stock.expect(checkpoint),
            (Isolation::Vm, Holds::Memory, Some(vms)) => vms.waiting.expect_forks(checkpoint),
            // Booted from its disk.
            (Isolation::Vm, ..) => {}
        }
    }

    /// Removes a checkpoint; returns once nothing of it is left. What was made from it stays.
    pub(crate) async fn remove_checkpoint(&self, id: &CheckpointId) -> Result<(), Error> {
        self.host.checkpoints.remove(id).await?;
        self.host.forget_forks(id).await;
        Ok(())
    }

    /// Puts a sandbox back to a checkpoint; returns once that is certain to happen.
    pub(crate) async fn restore(&self, id: &SandboxId, checkpoint: &CheckpointId) -> Result<Report, Error> {
        let sandbox = self.get(id)?;
        let whole = self.host.checkpoints.open_whole(checkpoint).await?;
        sandbox.begin(Order::Restore(whole)).await
    }
}
