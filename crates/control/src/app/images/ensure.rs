//! From a manifest to an image that is ready, or to the build that makes it so.

use std::sync::Arc;

use jiff::Timestamp;
use warren_node_api::{ImageLookup, RegistryAuth};
use warren_types::{CheckpointId, Error, ErrorKind, Isolation, OrgId};

use super::build::{Build, Waiting};
use super::manifest::{Base, Manifest};
use super::names::SnapshotRef;
use super::{Reader, image_not_found};
use crate::app::App;
use crate::app::audit::{Kind, Note, Who};
use crate::app::auth::Caller;
use crate::app::guest::from_node;
use crate::app::sandboxes::create::offered;
use crate::store::checkpoints::Status;
use crate::store::images::change::NewImage;
use crate::store::images::names::NamedImage;
use crate::store::images::{ImageKey, ImageRow, ImageStatus, StoredBase};

/// What the steps start from, looked up.
#[derive(Debug, Clone)]
pub(super) enum BaseWanted {
    Template(String),
    /// What it stood for when it was looked up, by digest: its tag may have moved since.
    Registry {
        reference: String,
        digest: String,
    },
    Checkpoint(CheckpointId),
    /// What a snapshot stands for, in whichever isolation it is there.
    Image {
        org: OrgId,
        id: String,
    },
}

/// An image that can be built.
#[derive(Debug, Clone)]
pub(crate) struct ImageWanted {
    pub(super) org: OrgId,
    pub(super) key: ImageKey,
    pub(super) manifest: Arc<Manifest>,
    pub(super) base: BaseWanted,
    /// Who wants it.
    pub(super) by: Who,
    /// Not kept beyond the build.
    pub(super) auth: Option<RegistryAuth>,
}

#[derive(Debug)]
pub(crate) enum Ensured {
    Ready(Box<ImageRow>),
    Building(Waiting),
}

impl ImageWanted {
    pub(super) fn by(self, caller: &Caller) -> Self {
        Self { by: caller.who().clone(), ..self }
    }

    /// A record of something that is done to it.
    pub(super) fn note(&self, kind: Kind, action: &str) -> Note {
        self.by.note(kind).with("action", action)
    }
}

impl App {
    /// Looks up what a manifest refers to. Nothing has happened when that fails.
    pub(super) async fn image_wanted(
        &self,
        org: &OrgId,
        manifest: Manifest,
        isolation: Option<Isolation>,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageWanted, Error> {
        let mut isolation_wanted = isolation;
        let (base, identity) = match &manifest.base {
            Base::Template(name) => (BaseWanted::Template(name.clone()), manifest.base.canonical()),
            Base::Registry(reference) => {
                // A tag moves; what is built from it is another image then.
                let digest = self.resolve_reference(org, reference, auth.as_ref()).await?;
                let identity = format!("{reference} {digest}");
                (BaseWanted::Registry { reference: reference.clone(), digest }, Some(identity))
            }
            Base::Snapshot(name) => {
                let found = self.find_usable_snapshot(org, name).await?;
                let identity = format!("image:{}", found.image.content_hash);
                (BaseWanted::Image { org: found.image.org, id: found.image.id }, Some(identity))
            }
            Base::Checkpoint(id) => {
                let own = self.isolation_of_checkpoint(org, id).await?;
                if isolation.is_some_and(|wanted| wanted != own) {
                    return Err(Error::invalid(format!(
                        "image.base: that checkpoint is of isolation {own}, and so is what starts from it"
                    )));
                }
                isolation_wanted = Some(own);
                (BaseWanted::Checkpoint(id.clone()), manifest.base.canonical())
            }
        };
        let identity = identity.ok_or_else(|| Error::internal("a base has no identity"))?;
        let key = ImageKey {
            org: org.clone(),
            content_hash: manifest.content_hash(&identity),
            isolation: offered(&self.node_info(), isolation_wanted)?,
            memory_mb: manifest.runtime_memory_mb,
        };
        let (org, by) = (org.clone(), Who::server(org.clone()));
        Ok(ImageWanted { org, key, manifest: Arc::new(manifest), base, by, auth })
    }

    /// Digest of what a reference stands for now; of what it stood for when this organisation last asked, where its registry
    /// does not answer.
    async fn resolve_reference(
        &self,
        org: &OrgId,
        reference: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<String, Error> {
        let lookup = ImageLookup { reference: reference.to_owned(), auth: auth.cloned() };
        let error = match self.node.resolve_image(&lookup).await {
            Ok(resolved) => {
                self.store.put_reference(org, reference, &resolved.digest).await?;
                return Ok(resolved.digest);
            }
            Err(error) => error,
        };
        let known = match error.kind {
            ErrorKind::Unavailable => self.store.find_reference(org, reference).await?,
            _ => None,
        };
        let Some(digest) = known else { return Err(from_node(error)) };
        tracing::info!(reference, %error, "a registry does not answer; going on with what it said last");
        Ok(digest)
    }

    async fn isolation_of_checkpoint(&self, org: &OrgId, id: &CheckpointId) -> Result<Isolation, Error> {
        let row = self.store.find_checkpoint(id).await?.filter(|row| row.org == *org || row.is_public);
        let row = row.ok_or_else(|| Error::invalid(format!("image.base: checkpoint not found: {id}")))?;
        match (row.status, row.spec) {
            (Status::Ready, Some(spec)) => Ok(spec.isolation),
            _ => Err(Error::invalid(format!("image.base: checkpoint {id} is not ready"))),
        }
    }

    /// A snapshot that may be used: the organisation's own, or one that was published. 400 otherwise, because it was named
    /// in a body.
    pub(super) async fn find_usable_snapshot(
        &self,
        org: &OrgId,
        wanted: &SnapshotRef,
    ) -> Result<NamedImage, Error> {
        let found = self.find_snapshot_for(org, wanted).await?;
        let found = found.ok_or_else(|| {
            Error::invalid(format!(
                "snapshot \"{wanted}\" not found: GET /api/snapshots lists those there are; create it first"
            ))
        })?;
        match found.image.status {
            ImageStatus::Ready => Ok(found),
            status => {
                let why = found.image.error.map(|error| format!(": {error}")).unwrap_or_default();
                Err(Error::invalid(format!(
                    "snapshot \"{wanted}\" is not ready (status: {}){why}",
                    status.as_str()
                )))
            }
        }
    }

    pub(super) async fn find_snapshot_for(
        &self,
        org: &OrgId,
        wanted: &SnapshotRef,
    ) -> Result<Option<NamedImage>, Error> {
        if let Some(own) = self.store.find_snapshot_to_use(org, &wanted.name, wanted.version).await? {
            return Ok(Some(own));
        }
        if self.store.find_snapshot(org, &wanted.name, None).await?.is_some() {
            return Ok(None);
        }
        Ok(self.store.find_public_snapshot(&wanted.name, wanted.version).await?)
    }

    /// The image, or the one build that makes it, which is started if it has to be.
    pub(super) async fn ensure_image(self: &Arc<Self>, wanted: ImageWanted) -> Result<Ensured, Error> {
        let app = Arc::clone(self);
        self.to_the_end(async move { app.ensure_image_now(wanted).await }).await
    }

    async fn ensure_image_now(self: &Arc<Self>, wanted: ImageWanted) -> Result<Ensured, Error> {
        let key = &wanted.key;
        let _turn = self.key_turns.turn(&(wanted.org.clone(), turn_of(key))).await;
        if let Some(row) = self.store.find_image_like(key).await? {
            if row.status == ImageStatus::Ready {
                self.touch_image_soon(&row);
                return Ok(Ensured::Ready(Box::new(row)));
            }
            if let Some(build) = self.builds.find(&row.id) {
                return Ok(Ensured::Building(Waiting::begin(build)));
            }
        }
        if self.shutdown.is_cancelled() {
            return Err(Error::unavailable("the server is stopping; try again in a moment"));
        }
        let json = |value| serde_json::to_string(value).expect("a JSON value has a JSON form");
        let new = NewImage {
            key: key.clone(),
            manifest: json(&wanted.manifest.sent),
            base: match &wanted.base {
                BaseWanted::Image { org, id } => {
                    StoredBase { image: Some((org.clone(), id.clone())), digest: None }
                }
                BaseWanted::Registry { digest, .. } => {
                    StoredBase { image: None, digest: Some(digest.clone()) }
                }
                BaseWanted::Template(_) | BaseWanted::Checkpoint(_) => StoredBase::default(),
            },
            shown: json(&wanted.manifest.shown()),
        };
        let (id, before) = self.store.begin_image(&new).await?;
        let build = self.builds.begin(id);
        self.start_build(wanted, &build);
        let waiting = Waiting::begin(build);
        if let Some(before) = before {
            self.delete_checkpoint_row(&before).await?;
        }
        Ok(Ensured::Building(waiting))
    }

    /// Writes down that an image was used; nobody waits for that. One that is used all the time is written down once a second:
    /// each create would wait for that of the one before.
    pub(super) fn touch_image_soon(&self, row: &ImageRow) {
        if Timestamp::now().duration_since(row.last_used_at).as_secs() == 0 {
            return;
        }
        let (store, id) = (self.store.clone(), row.id.clone());
        self.tasks.spawn(async move {
            // What went wrong is in the log of the store.
            let _ = store.touch_image(&id).await.map_err(Error::from);
        });
    }

    /// An image that is stored, ready in that isolation: built first where it is not.
    pub(super) async fn image_for(
        self: &Arc<Self>,
        org: &OrgId,
        id: &str,
        isolation: Isolation,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageRow, Error> {
        match self.ensure_stored(org, id, isolation, auth).await? {
            Ensured::Ready(row) => Ok(*row),
            Ensured::Building(waiting) => self.built(org, waiting.build()).await,
        }
    }

    /// `auth` is of somebody who may use the organisation's logins: its registry is asked where the node has not kept what the
    /// image starts from.
    pub(super) async fn ensure_stored(
        self: &Arc<Self>,
        org: &OrgId,
        id: &str,
        isolation: Isolation,
        auth: Option<RegistryAuth>,
    ) -> Result<Ensured, Error> {
        let row = self.store.find_image(org, id).await?.ok_or_else(image_not_found)?;
        let found = self.store.find_image_like(&key_of(&row, isolation)).await?;
        match found.filter(|found| found.status == ImageStatus::Ready) {
            Some(found) => {
                self.touch_image_soon(&found);
                Ok(Ensured::Ready(Box::new(found)))
            }
            None => self.ensure_image(self.wanted_again(&row, isolation, auth).await?).await,
        }
    }

    /// An image that is stored, to be built in that isolation. What its base is called may stand for something else by now:
    /// it starts from what that was.
    pub(super) async fn wanted_again(
        &self,
        row: &ImageRow,
        isolation: Isolation,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageWanted, Error> {
        let manifest = self.store.find_manifest(&row.id, u32::MAX).await?.ok_or_else(image_not_found)?;
        let manifest = Manifest::stored(&manifest)?;
        let key = key_of(row, isolation);
        let stored = self.store.find_image_base(&row.id).await?;
        let base = match (stored, &manifest.base) {
            (StoredBase { image: Some((org, id)), .. }, _) => BaseWanted::Image { org, id },
            (StoredBase { digest: Some(digest), .. }, Base::Registry(reference)) => {
                BaseWanted::Registry { reference: reference.clone(), digest }
            }
            _ => {
                let wanted = self.image_wanted(&row.org, manifest, Some(isolation), auth).await?;
                if wanted.key.content_hash != row.content_hash {
                    return Err(Error::conflict(
                        "what the image starts from is another one by now, and what it was is not known any more; build it anew",
                    ));
                }
                return Ok(ImageWanted { key, ..wanted });
            }
        };
        let (org, by) = (row.org.clone(), Who::server(row.org.clone()));
        Ok(ImageWanted { org, key, manifest: Arc::new(manifest), base, by, auth })
    }

    /// Waits for a build; its image.
    pub(super) async fn built(&self, org: &OrgId, build: &Arc<Build>) -> Result<ImageRow, Error> {
        Reader::new(Arc::clone(build)).ended().await?;
        let row = self.store.find_image(org, &build.image_id).await?;
        row.filter(|row| row.status == ImageStatus::Ready)
            .ok_or_else(|| Error::new(ErrorKind::Gone, "the image was deleted as soon as it was built"))
    }
}

/// What is held while one image is begun, or removed. A blank cannot stand in the keys of clients.
pub(super) fn turn_of(key: &ImageKey) -> String {
    format!("image {} {} {}", key.content_hash, key.isolation, key.memory_mb.unwrap_or(0))
}

pub(super) fn key_of(row: &ImageRow, isolation: Isolation) -> ImageKey {
    ImageKey {
        org: row.org.clone(),
        content_hash: row.content_hash.clone(),
        isolation,
        memory_mb: row.memory_mb,
    }
}
