//! Patches of snapshots and images: those of their checkpoints. An image has one in each isolation it was built for, and they
//! have the same patches.

use std::sync::Arc;

use warren_api::checkpoints::{Patch, PatchCreate};
use warren_types::{CheckpointId, Error};

use crate::app::App;
use crate::app::auth::Caller;
use crate::store::images::ImageStatus;
use crate::store::images::names::NamedImage;

/// By what an image is named.
#[derive(Debug, Clone)]
pub(crate) enum Named {
    Snapshot(String),
    /// An id, or the name of a snapshot.
    Image(String),
}

impl App {
    pub(crate) async fn create_image_patch(
        self: &Arc<Self>,
        caller: &Caller,
        named: &Named,
        body: PatchCreate,
    ) -> Result<Patch, Error> {
        let checkpoint = self.checkpoint_of(caller, named).await?;
        self.create_patch(caller, &checkpoint, body).await
    }

    pub(crate) async fn list_image_patches(
        &self,
        caller: &Caller,
        named: &Named,
    ) -> Result<Vec<Patch>, Error> {
        let checkpoint = self.checkpoint_of(caller, named).await?;
        self.list_patches(caller, &checkpoint).await
    }

    pub(crate) async fn delete_image_patch(
        self: &Arc<Self>,
        caller: &Caller,
        named: &Named,
        patch: String,
    ) -> Result<(), Error> {
        let checkpoint = self.checkpoint_of(caller, named).await?;
        self.delete_patch(caller, &checkpoint, patch).await
    }

    /// Gives a checkpoint that was made for an image the patches that the image has in the other isolation.
    pub(super) async fn copy_patches(&self, image: &str, checkpoint: &CheckpointId) -> Result<(), Error> {
        if self.store.copy_patches(image, checkpoint).await? > 0 {
            self.send_patches_soon(std::slice::from_ref(checkpoint)).await;
        }
        Ok(())
    }

    async fn checkpoint_of(&self, caller: &Caller, named: &Named) -> Result<CheckpointId, Error> {
        let NamedImage { image, .. } = match named {
            Named::Snapshot(name) => self.find_own_snapshot(caller, name).await?,
            Named::Image(text) => self.find_own_image(caller, text).await?,
        };
        match (image.status, image.checkpoint_id) {
            (ImageStatus::Ready, Some(id)) => Ok(id),
            (status, _) => {
                Err(Error::invalid(format!("the image is not ready (status: {})", status.as_str())))
            }
        }
    }
}
