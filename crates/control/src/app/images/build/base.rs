//! What the steps of an image start from.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_node_api::{ImageSettings, TemplateImport, TemplateReport};
use warren_types::size::MIN_DISK_MB;
use warren_types::{CheckpointId, EgressPolicy, Error};

use super::{Build, Need, Needed};
use crate::app::App;
use crate::app::access::remove_given;
use crate::app::guest::from_node;
use crate::app::images::ensure::{BaseWanted, ImageWanted};
use crate::store::access::AccessRecord;
use crate::store::checkpoints::Status;

/// Longest command that is shown, in characters.
const SHOWN_COMMAND: usize = 300;

/// A base that is there.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// What the key of the first layer is made of.
    pub identity: String,
    pub template: String,
    /// The disk it starts with; an empty one over the template without.
    pub checkpoint: Option<CheckpointId>,
    pub disk_mb: u32,
    pub envs: BTreeMap<String, String>,
    pub settings: ImageSettings,
    pub start_commands: Vec<String>,
    /// What sandboxes made from the image inherit.
    pub access: AccessRecord,
    /// What the steps may reach.
    pub egress: EgressPolicy,
}

/// What a container engine would start, in words.
fn command_of(template: &TemplateReport) -> Option<String> {
    let words: Vec<&str> = template.entrypoint.iter().chain(&template.cmd).map(String::as_str).collect();
    let text: String = words.join(" ").chars().filter(|c| !c.is_control()).take(SHOWN_COMMAND).collect();
    (!text.is_empty()).then_some(text)
}

impl Start {
    fn of_template(template: TemplateReport) -> Self {
        Self {
            identity: format!("template {} {}", template.name, template.digest),
            template: template.name,
            checkpoint: None,
            disk_mb: MIN_DISK_MB,
            envs: template.envs,
            settings: template.settings,
            start_commands: Vec::new(),
            access: AccessRecord::default(),
            egress: EgressPolicy::default(),
        }
    }
}

impl App {
    /// The checkpoint a snapshot stands for where one is the base, which is built first if it has to be. Waits for other
    /// builds, so it comes before this one takes a place.
    pub(super) async fn base_checkpoint(
        self: &Arc<Self>,
        wanted: &ImageWanted,
        build: &Build,
    ) -> Result<Option<CheckpointId>, Error> {
        match &wanted.base {
            BaseWanted::Template(_) | BaseWanted::Registry { .. } => Ok(None),
            BaseWanted::Checkpoint(id) => Ok(Some(id.clone())),
            BaseWanted::Image { org, id } => {
                build.log.say(0, "resolve", "Making sure that the snapshot it starts from is there");
                // A login is for what is one's own: what somebody else's image starts from is not asked with it.
                let auth = wanted.auth.clone().filter(|_| *org == wanted.org);
                let isolation = wanted.key.isolation;
                let gone = || {
                    let text = format!(
                        "the snapshot it starts from was deleted, so it cannot be built as {isolation}"
                    );
                    Error::conflict(text)
                };
                self.store.find_image(org, id).await?.ok_or_else(gone)?;
                let image = Box::pin(self.image_for(org, id, isolation, auth)).await?;
                Ok(Some(image.checkpoint_id.ok_or_else(gone)?))
            }
        }
    }

    pub(super) async fn find_start(
        &self,
        wanted: &ImageWanted,
        checkpoint: Option<CheckpointId>,
        build: &Build,
        need: &mut Need,
    ) -> Result<Start, Error> {
        if let Some(id) = checkpoint {
            need.add(Needed::Checkpoint(id.clone()));
            return self.start_at_checkpoint(wanted, id).await;
        }
        let template = match &wanted.base {
            BaseWanted::Registry { reference, digest } => {
                build.log.say(0, "resolve", format!("Looking {reference} up"));
                let import = TemplateImport {
                    reference: reference.clone(),
                    digest: digest.clone(),
                    auth: wanted.auth.clone(),
                };
                let lines = self.node.import_template(&import).await.map_err(from_node)?;
                super::import::follow(lines, &build.log).await?
            }
            BaseWanted::Template(name) => {
                need.add(Needed::Template(name.clone()));
                let all = self.node.list_templates().await.map_err(from_node)?;
                let found = all.into_iter().find(|template| template.name == *name);
                found.ok_or_else(|| Error::not_found(format!("template not found: {name}")))?
            }
            BaseWanted::Image { .. } | BaseWanted::Checkpoint(_) => {
                return Err(Error::internal("a base that is a checkpoint has none"));
            }
        };
        need.add(Needed::Template(template.name.clone()));
        if let Some(command) = command_of(&template) {
            build.log.say(0, "resolve", format!("Its command is not started by itself: {command}"));
        }
        Ok(Start::of_template(template))
    }

    async fn start_at_checkpoint(&self, wanted: &ImageWanted, id: CheckpointId) -> Result<Start, Error> {
        let row = self.store.find_checkpoint(&id).await?.filter(|row| row.status == Status::Ready);
        let row = row.ok_or_else(|| Error::conflict("the checkpoint the image starts from is gone"))?;
        let spec =
            row.spec.ok_or_else(|| Error::internal("a ready checkpoint says nothing of its sandbox"))?;
        let mut envs = spec.envs;
        remove_given(&mut envs);
        let ours = row.org == wanted.org;
        Ok(Start {
            identity: format!("checkpoint {id}"),
            template: spec.template,
            checkpoint: Some(id),
            disk_mb: spec.size.disk_mb,
            envs,
            settings: spec.image,
            start_commands: spec.start_commands,
            access: if ours {
                row.access
            } else {
                AccessRecord { policy: row.access.policy, ..AccessRecord::default() }
            },
            egress: spec.egress,
        })
    }
}
