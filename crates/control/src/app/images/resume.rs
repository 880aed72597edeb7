//! Builds that the end of a server cut off. What has a name is built again, from the layers there are; of the rest nobody waits
//! any more. What they had taken and no layer and no image has is removed, with its space.

use std::sync::Arc;

use warren_node_api::Space;
use warren_types::{Error, OrgId};

use super::build::Needed;
use crate::app::{App, ImageSpace};
use crate::store::now_micros;

impl App {
    /// To be called once, when the server starts and before anybody can ask for anything.
    pub(crate) async fn resume_builds(self: &Arc<Self>) {
        // No build goes on yet, so whatever is nobody's will not be anybody's.
        if let Err(error) = self.remove_stray_builds(now_micros()).await {
            tracing::warn!(%error, "what builds left behind could not be removed; it is left to the sweep");
        }
        let unfinished = match self.store.list_unfinished_images().await {
            Ok(unfinished) => unfinished,
            // The store's log says why; a request builds them anew.
            Err(_) => return,
        };
        for (id, org, has_name) in unfinished {
            if self.builds.find(&id).is_some() {
                continue;
            }
            let resumed = if has_name { self.resume(&org, &id).await } else { self.give_up(&org, &id).await };
            if let Err(error) = resumed {
                tracing::warn!(image = %id, %error, "a build that was cut off cannot be gone on with");
                if let Err(error) = self.store.fail_image(&id, &error.message).await {
                    tracing::warn!(image = %id, error = &error as &dyn std::error::Error, "its row stays as it is");
                }
            }
        }
    }

    /// Removes checkpoints that builds took before that time and that nothing has.
    pub(crate) async fn remove_stray_builds(&self, before: i64) -> Result<(), Error> {
        self.store.forget_lost_layers().await?;
        for id in self.store.list_stray_builds(before).await? {
            if !self.builds.is_needed(&Needed::Checkpoint(id.clone())) {
                tracing::info!(checkpoint = %id, "removing what a build has left behind");
                self.delete_checkpoint_row(&id).await?;
            }
        }
        Ok(())
    }

    async fn resume(self: &Arc<Self>, org: &OrgId, id: &str) -> Result<(), Error> {
        let row = self.store.find_image(org, id).await?.ok_or_else(super::image_not_found)?;
        let wanted = self.wanted_again(&row, row.isolation, None).await?;
        tracing::info!(image = %id, "going on with a build that was cut off");
        self.ensure_image(wanted).await.map(drop)
    }

    async fn give_up(&self, org: &OrgId, id: &str) -> Result<(), Error> {
        if let Some(Some(checkpoint)) = self.store.remove_image(org, id).await? {
            self.delete_checkpoint_row(&checkpoint).await?;
        }
        Ok(())
    }
}

impl ImageSpace {
    /// Bytes that may be used; 0 = any number.
    pub(crate) fn budget(&self, space: &Space) -> u64 {
        self.budget_bytes.unwrap_or(space.volume_bytes / 2)
    }
}
