//! Snapshots and images: made, listed, published, deleted.

use std::sync::Arc;

use serde_json::Value;
use warren_api::images::{ImageUsage, Snapshot, SnapshotCreate};
use warren_types::{CheckpointId, Error, OrgId};

use super::build::Build;
use super::ensure::{Ensured, ImageWanted, key_of, turn_of};
use super::manifest::Manifest;
use super::names::{SnapshotRef, check_new_name};
use super::view::view;
use super::{Reader, create, image_not_found, snapshot_not_found};
use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Caller;
use crate::app::guest::from_node;
use crate::store::images::ImageStatus;
use crate::store::images::names::{NamedImage, Naming, Publishing};

/// A manifest that is longer is shown without the contents of its files.
const MAX_SHOWN_BYTES: u32 = 1024 * 1024;

/// How often an image that is to have a name may be deleted in between.
const NAMING_TRIES: usize = 8;

/// A snapshot that is ready or being built.
#[derive(Debug)]
pub(crate) struct PendingSnapshot {
    org: OrgId,
    name: String,
    version: u32,
    /// None when it is ready.
    build: Option<Arc<Build>>,
}

// === impl PendingSnapshot ===

impl PendingSnapshot {
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.build.as_ref().map(|build| Reader::new(Arc::clone(build)))
    }
}

// === impl App ===

impl App {
    /// Everything that can be refused is refused here; the build goes on by itself.
    pub(crate) async fn begin_snapshot(
        self: &Arc<Self>,
        caller: &Caller,
        body: SnapshotCreate,
    ) -> Result<PendingSnapshot, Error> {
        check_new_name(&body.name)?;
        let image = body.image.filter(|image| !image.is_null());
        let image = image
            .ok_or_else(|| Error::invalid("image is required: a manifest, or a reference such as node:22"))?;
        let isolation = match body.isolation.as_deref() {
            None | Some("") => None,
            Some(word) => Some(word.parse().map_err(Error::invalid)?),
        };
        let auth = create::registry_auth(body.registry_auth)?;
        let manifest = Manifest::parse(image)?;
        let existing = self.store.find_snapshot(caller.org(), &body.name, None).await?;
        self.check_name_free(existing.as_ref(), body.new_version)?;
        let wanted = self.image_wanted(caller.org(), manifest, isolation, auth).await?.by(caller);
        let (ensured, version) = self.ensure_named(wanted, (&body.name, existing), body.new_version).await?;
        let build = ensured.into_build();
        Ok(PendingSnapshot { org: caller.org().clone(), name: body.name, version, build })
    }

    /// Waits until it is built.
    pub(crate) async fn finish_snapshot(&self, pending: PendingSnapshot) -> Result<Snapshot, Error> {
        if let Some(build) = &pending.build {
            self.built(&pending.org, build).await?;
        }
        self.show_pending(&pending).await
    }

    /// As it is now.
    pub(crate) async fn show_pending(&self, pending: &PendingSnapshot) -> Result<Snapshot, Error> {
        let found = self.store.find_snapshot(&pending.org, &pending.name, Some(pending.version)).await?;
        let found =
            found.ok_or_else(|| Error::conflict("the snapshot was deleted as soon as it was made"))?;
        Ok(view(found, None))
    }

    /// A version that failed, or is lost, is in nobody's way.
    pub(super) fn check_name_free(
        &self,
        existing: Option<&NamedImage>,
        new_version: bool,
    ) -> Result<(), Error> {
        match existing {
            Some(found) if !new_version && found.image.status != ImageStatus::Failed => Err(name_taken()),
            _ => Ok(()),
        }
    }

    /// Makes sure of an image and gives it a name, of which `existing` was the newest version; the number of the version.
    pub(super) async fn ensure_named(
        self: &Arc<Self>,
        wanted: ImageWanted,
        (name, existing): (&str, Option<NamedImage>),
        new_version: bool,
    ) -> Result<(Ensured, u32), Error> {
        let failed = existing.filter(|found| found.image.status == ImageStatus::Failed);
        let failed = failed.and_then(|found| found.name).map(|name| name.version);
        let note = wanted.note(Kind::Snapshot, "create").with("name", name);
        let named = self.audit.around_with(
            note,
            self.name(wanted, (name, failed), new_version),
            |(ensured, version)| {
                [("version", Value::from(*version)), ("image", ensured.image_id().into())]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into_iter()
                    .collect()
            },
        );
        named.await
    }

    async fn name(
        self: &Arc<Self>,
        wanted: ImageWanted,
        (name, failed): (&str, Option<u32>),
        new_version: bool,
    ) -> Result<(Ensured, u32), Error> {
        for _ in 0..NAMING_TRIES {
            let ensured = self.ensure_image(wanted.clone()).await?;
            let image = ensured.image_id();
            match self.store.insert_name(&wanted.org, name, new_version, image, failed).await? {
                Naming::Version(version) => return Ok((ensured, version)),
                Naming::Taken => return Err(name_taken()),
                // The last of the names that it had was deleted in between.
                Naming::ImageGone => {}
            }
        }
        Err(Error::conflict("the image was deleted meanwhile; ask again"))
    }

    /// Newest first.
    pub(crate) async fn list_snapshots(
        &self,
        caller: &Caller,
        all_versions: bool,
    ) -> Result<Vec<Snapshot>, Error> {
        let rows = self.store.list_snapshots(caller.org(), all_versions).await?;
        Ok(rows.into_iter().map(|row| view(row, None)).collect())
    }

    pub(crate) async fn get_snapshot(&self, caller: &Caller, name: &str) -> Result<Snapshot, Error> {
        let found = self.find_own_snapshot(caller, name).await?;
        self.show_whole(found).await
    }

    /// Newest first, those without a name too.
    pub(crate) async fn list_images(&self, caller: &Caller) -> Result<Vec<Snapshot>, Error> {
        let rows = self.store.list_images(caller.org()).await?;
        Ok(rows.into_iter().map(|row| view(row, None)).collect())
    }

    /// By id, or by the name of a snapshot.
    pub(crate) async fn get_image(&self, caller: &Caller, text: &str) -> Result<Snapshot, Error> {
        let found = self.find_own_image(caller, text).await?;
        self.show_whole(found).await
    }

    async fn show_whole(&self, found: NamedImage) -> Result<Snapshot, Error> {
        // One with large files in it would be sent whole to everybody who waits for it to be built.
        let manifest = self.store.find_manifest(&found.image.id, MAX_SHOWN_BYTES).await?;
        Ok(view(found, manifest.and_then(|text| serde_json::from_str(&text).ok())))
    }

    pub(super) async fn find_own_snapshot(&self, caller: &Caller, name: &str) -> Result<NamedImage, Error> {
        let wanted = SnapshotRef::parse(name).map_err(|_| snapshot_not_found())?;
        let found = self.store.find_snapshot(caller.org(), &wanted.name, wanted.version).await?;
        found.ok_or_else(snapshot_not_found)
    }

    pub(super) async fn find_own_image(&self, caller: &Caller, text: &str) -> Result<NamedImage, Error> {
        if let Some(image) = self.store.find_image(caller.org(), text).await? {
            return Ok(NamedImage { image, name: None });
        }
        self.find_own_snapshot(caller, text).await.map_err(|_| image_not_found())
    }

    /// Makes a version known to all organisations, or no more. The name of it, and what it is now.
    pub(crate) async fn publish_snapshot(
        &self,
        caller: &Caller,
        name: &str,
        public: bool,
    ) -> Result<(String, bool), Error> {
        let found = self.find_own_snapshot(caller, name).await?;
        let version = found.name.ok_or_else(snapshot_not_found)?;
        match self.store.set_name_public(caller.org(), &version, public).await? {
            Publishing::Done => {}
            Publishing::Gone => return Err(snapshot_not_found()),
            Publishing::Taken => {
                return Err(Error::conflict(format!(
                    "another organisation has published a snapshot called \"{}\", and everybody else who says that name means \
                     it; publish yours under another name",
                    version.name
                )));
            }
        }
        if let Some(checkpoint) = &found.image.checkpoint_id {
            let any = self.store.is_image_public(&found.image.id).await?;
            self.store.set_checkpoint_public(checkpoint, any).await?;
        }
        let action = if public { "publish" } else { "unpublish" };
        let note = caller.note(Kind::Snapshot).with("action", action).with("name", version.name.as_str());
        self.audit.note(note.with("version", version.version).with("outcome", "done")).await?;
        Ok((version.name, public))
    }

    /// A checkpoint that was made anew for an image is as public as the names of that are.
    pub(super) async fn publish_with_names(
        &self,
        image: &str,
        checkpoint: &CheckpointId,
    ) -> Result<(), Error> {
        if self.store.is_image_public(image).await? {
            self.store.set_checkpoint_public(checkpoint, true).await?;
        }
        Ok(())
    }

    /// Takes a name away, with all its versions or one, and removes the images that have no other. Sandboxes live on.
    pub(crate) async fn delete_snapshot(self: &Arc<Self>, caller: &Caller, name: &str) -> Result<(), Error> {
        let wanted = SnapshotRef::parse(name).map_err(|_| snapshot_not_found())?;
        let (app, org) = (Arc::clone(self), caller.org().clone());
        let note = caller.note(Kind::Snapshot).with("action", "delete").with("name", wanted.name.as_str());
        self.change(note.with("version", wanted.version), async move {
            let images = app.store.remove_names(&org, &wanted.name, wanted.version).await?;
            if images.is_empty() {
                return Err(snapshot_not_found());
            }
            for image in images {
                for nameless in app.store.list_nameless_like(&image).await? {
                    app.remove_nameless(&org, &nameless).await?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes an image with its names. Sandboxes live on.
    pub(crate) async fn delete_image(self: &Arc<Self>, caller: &Caller, text: &str) -> Result<(), Error> {
        let found = self.find_own_image(caller, text).await?;
        let (app, org) = (Arc::clone(self), caller.org().clone());
        let note = caller.note(Kind::Image).with("action", "delete").with("image", found.image.id.as_str());
        self.change(note, async move { app.remove_image(&org, &found.image.id).await }).await
    }

    /// Removes an image that has lost its names. One that is being built stays while somebody waits for it.
    async fn remove_nameless(&self, org: &OrgId, id: &str) -> Result<(), Error> {
        let Some(row) = self.store.find_image(org, id).await? else { return Ok(()) };
        let _turn = self.key_turns.turn(&(org.clone(), turn_of(&key_of(&row, row.isolation)))).await;
        if self.builds.find(id).is_some_and(|build| build.is_waited_for()) {
            return Ok(());
        }
        let removed = self.store.remove_nameless_image(org, id).await?;
        self.end_image(id, removed).await
    }

    async fn remove_image(&self, org: &OrgId, id: &str) -> Result<(), Error> {
        let removed = self.store.remove_image(org, id).await?;
        self.end_image(id, removed).await
    }

    /// What an image leaves behind whose row is gone.
    async fn end_image(&self, id: &str, removed: Option<Option<CheckpointId>>) -> Result<(), Error> {
        let Some(checkpoint) = removed else { return Ok(()) };
        if let Some(build) = self.builds.find(id) {
            build.cancel.cancel();
        }
        if let Some(checkpoint) = checkpoint {
            self.delete_checkpoint_row(&checkpoint).await?;
        }
        Ok(())
    }

    pub(crate) async fn get_image_usage(&self) -> Result<ImageUsage, Error> {
        let space = self.node.get_space().await.map_err(from_node)?;
        Ok(ImageUsage {
            used_bytes: space.used_bytes,
            budget_bytes: self.image_space.budget(&space),
            volume_bytes: space.volume_bytes,
            free_bytes: space.free_bytes,
        })
    }
}

fn name_taken() -> Error {
    Error::conflict(
        "snapshot name already exists; choose another, delete that one, or say newVersion to make another version of it",
    )
}
