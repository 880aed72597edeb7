//! Creates with `image` or `snapshot`: checked, then the image is made sure of, then its checkpoint is forked.

use std::sync::Arc;

use warren_api::sandboxes::SandboxCreate;
use warren_node_api::RegistryAuth;
use warren_types::{Error, Isolation, OrgId, Secret};

use super::Reader;
use super::build::Build;
use super::ensure::Ensured;
use super::manifest::{Base, Manifest};
use super::names::SnapshotRef;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::checkpoints::derive::Over;
use crate::app::sandboxes::create::{CreateError, Created, identify};
use crate::store::checkpoints::Status;
use crate::store::idempotency::IdempotencyKey;
use crate::store::images::{ImageRow, ImageStatus};

/// MiB that sandboxes have at least whose image does not say.
const DEFAULT_FLOOR_MB: u32 = 1024;

/// A create whose image is ready or being built.
#[derive(Debug)]
pub(crate) struct Pending {
    caller: Caller,
    over: Over,
    key: Option<IdempotencyKey>,
    base: String,
    /// Whose image it is.
    owner: OrgId,
    ensured: Ensured,
    /// What is said to be the sandbox's template.
    shown_template: String,
}

/// What came of the beginning of a create.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It was made before, for the same idempotency key.
    Repeated(Box<Created>),
    Pending(Box<Pending>),
}

/// Whether a create starts from an image or a snapshot.
pub(crate) fn is_from_image(body: &SandboxCreate) -> bool {
    image_of(body).is_some() || snapshot_of(body).is_some()
}

fn image_of(body: &SandboxCreate) -> Option<&serde_json::Value> {
    body.image.as_ref().filter(|image| !image.is_null())
}

fn snapshot_of(body: &SandboxCreate) -> Option<&str> {
    body.snapshot.as_deref().filter(|name| !name.is_empty())
}

// === impl Pending ===

impl Pending {
    /// What its image is being built by; none when it is ready.
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.ensured.reader()
    }
}

// === impl App ===

impl App {
    /// Everything that can be refused is refused here; the build goes on by itself.
    pub(crate) async fn begin_from_image(
        self: &Arc<Self>,
        caller: &Caller,
        mut body: SandboxCreate,
        idempotency_key: Option<String>,
        base: String,
    ) -> Result<Begun, CreateError> {
        let auth = registry_auth(body.registry_auth.take())?;
        let key = idempotency_key.map(|key| identify(key, &body)).transpose()?;
        if let Some(key) = &key
            && let Some(row) = self.find_repeated(caller, key).await?
        {
            return Ok(Begun::Repeated(Box::new(self.repeated(row, &base))));
        }
        let image = body.image.take().filter(|image| !image.is_null());
        let snapshot = body.snapshot.take().filter(|name| !name.is_empty());
        let over = Over::try_from(body)?;
        self.check_store(caller, over.store.as_deref()).await?;
        let (owner, ensured, shown_template) = match (image, snapshot) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("image and snapshot are both set; leave one of them out").into());
            }
            (Some(image), None) => {
                let manifest = Manifest::parse(image)?;
                let shown = shown_base(&manifest.base);
                let ensured = self.ensure_for_create(caller, manifest, over.isolation, auth).await?;
                (caller.org().clone(), ensured, shown)
            }
            (None, Some(name)) => {
                let wanted = SnapshotRef::parse(&name)
                    .map_err(|error| Error::invalid(format!("snapshot {name:?} not found: {error}")))?;
                let found = self.find_usable_snapshot(caller.org(), &wanted).await?;
                let owner = found.image.org.clone();
                // A login is for what is one's own: what somebody else's image starts from is not asked with it.
                let auth = auth.filter(|_| owner == *caller.org());
                (owner, self.in_isolation(found.image, over.isolation, auth).await?, wanted.name)
            }
            (None, None) => return Err(Error::internal("a create from an image names none").into()),
        };
        if let Ensured::Ready(image) = &ensured {
            self.check_disk(&over, image).await?;
        }
        let caller = caller.clone();
        let pending = Pending { caller, over, key, base, owner, ensured, shown_template };
        Ok(Begun::Pending(Box::new(pending)))
    }

    /// The sandbox, once there is nothing left to be built.
    pub(crate) async fn make_from_image(self: &Arc<Self>, pending: Pending) -> Result<Created, CreateError> {
        let Pending { caller, over, key, base, owner, ensured, shown_template } = pending;
        let image = match ensured {
            Ensured::Ready(row) => *row,
            Ensured::Building(waiting) => self.built(&owner, waiting.build()).await?,
        };
        let gone = || Error::conflict("the image was deleted meanwhile; ask again, and it is built anew");
        let checkpoint = image.checkpoint_id.as_ref().ok_or_else(gone)?;
        let row = self.store.find_checkpoint(checkpoint).await?.ok_or_else(gone)?;
        if row.status != Status::Ready {
            return Err(gone().into());
        }
        let mut wanted = over.onto(caller.org(), row, Some(image.memory_mb.unwrap_or(DEFAULT_FLOOR_MB)))?;
        wanted.shown_template = Some(shown_template);
        self.create_wanted(&caller, wanted, key, base).await
    }

    async fn ensure_for_create(
        self: &Arc<Self>,
        caller: &Caller,
        manifest: Manifest,
        isolation: Option<Isolation>,
        auth: Option<RegistryAuth>,
    ) -> Result<Ensured, Error> {
        let name = manifest.name.clone();
        let wanted = self.image_wanted(caller.org(), manifest, isolation, auth).await?.by(caller);
        let Some(name) = name else { return self.ensure_image(wanted).await };
        let (org, hash) = (caller.org(), wanted.key.content_hash.clone());
        // Asked for once more, it has that name already.
        let existing = self.store.find_snapshot(org, &name, None).await?;
        let has_it = existing.as_ref().is_some_and(|found| found.image.content_hash == hash);
        if !has_it {
            self.check_name_free(existing.as_ref(), false)?;
        }
        if has_it {
            return self.ensure_image(wanted).await;
        }
        Ok(self.ensure_named(wanted, (&name, existing), false).await?.0)
    }

    /// What a snapshot stands for, in the isolation that is wanted: its own, unless another is asked for.
    async fn in_isolation(
        self: &Arc<Self>,
        image: ImageRow,
        wanted: Option<Isolation>,
        auth: Option<RegistryAuth>,
    ) -> Result<Ensured, Error> {
        match wanted {
            Some(wanted) if wanted != image.isolation => {
                crate::app::sandboxes::create::offered(&self.node_info(), Some(wanted))?;
                self.ensure_stored(&image.org, &image.id, wanted, auth).await
            }
            _ if image.status == ImageStatus::Ready => {
                self.touch_image_soon(&image);
                Ok(Ensured::Ready(Box::new(image)))
            }
            _ => Err(Error::internal("a snapshot that is not ready was taken for one that is")),
        }
    }

    /// A disk that is too small is told while that can be an answer of its own. One that is still to be built says so at its end.
    async fn check_disk(&self, over: &Over, image: &ImageRow) -> Result<(), Error> {
        let Some(checkpoint) = image.checkpoint_id.as_ref().filter(|_| over.says_disk()) else {
            return Ok(());
        };
        let row = self.store.find_checkpoint(checkpoint).await?;
        let own = row.and_then(|row| row.spec).map(|spec| spec.size.disk_mb);
        own.map_or(Ok(()), |own| over.disk_over(own).map(drop))
    }

    /// A store that is not there is told before anything is built for it.
    async fn check_store(&self, caller: &Caller, name: Option<&str>) -> Result<(), Error> {
        let Some(name) = name else { return Ok(()) };
        match self.store.find_secret_store_named(caller.org(), name).await? {
            Some(_) => Ok(()),
            None => Err(Error::invalid(format!("secret store not found: {name}"))),
        }
    }
}

impl Ensured {
    pub(super) fn image_id(&self) -> &str {
        match self {
            Self::Ready(row) => &row.id,
            Self::Building(waiting) => &waiting.build().image_id,
        }
    }

    pub(super) fn reader(&self) -> Option<Reader> {
        match self {
            Self::Ready(_) => None,
            Self::Building(waiting) => Some(Reader::new(Arc::clone(waiting.build()))),
        }
    }

    /// The build of it, for somebody to whom its name is all: with that, it may end.
    pub(super) fn into_build(self) -> Option<Arc<Build>> {
        match self {
            Self::Ready(_) => None,
            Self::Building(waiting) => Some(Arc::clone(waiting.build())),
        }
    }
}

fn shown_base(base: &Base) -> String {
    match base {
        Base::Snapshot(name) => name.name.clone(),
        base => base.canonical().unwrap_or_default(),
    }
}

pub(super) fn registry_auth(
    login: Option<warren_api::images::RegistryLogin>,
) -> Result<Option<RegistryAuth>, Error> {
    let Some(login) = login else { return Ok(None) };
    let bad = |text: &str| text.len() > 4096 || text.contains(char::is_control);
    if bad(&login.username) || login.username.contains(':') || login.password.len() > 64 * 1024 {
        return Err(Error::invalid("registryAuth.username must be at most 4096 bytes without a colon"));
    }
    Ok(Some(RegistryAuth { username: login.username, password: Secret::new(login.password) }))
}
