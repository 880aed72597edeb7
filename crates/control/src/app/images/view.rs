//! An image as clients see it.

use serde_json::Value;
use warren_api::images::Snapshot;

use crate::store::images::names::NamedImage;

/// `manifest` is what is shown of it, whole or without long contents.
pub(super) fn view(named: NamedImage, manifest: Option<Value>) -> Snapshot {
    let NamedImage { image, name } = named;
    let manifest = manifest.or_else(|| serde_json::from_str(&image.shown).ok()).unwrap_or_default();
    let created_at = name.as_ref().map_or(image.created_at, |name| name.created_at);
    let (name, version, public) =
        name.map_or((None, None, false), |name| (Some(name.name), Some(name.version), name.is_public));
    Snapshot {
        id: image.id,
        org_id: image.org.to_string(),
        content_hash: image.content_hash,
        checkpoint_id: image.checkpoint_id.map(|id| id.to_string()),
        name,
        version,
        manifest,
        status: image.status.as_str().to_owned(),
        error: image.error,
        isolation: image.isolation.to_string(),
        public,
        size_bytes: image.size_bytes,
        env: image.envs,
        workdir: image.workdir,
        created_at,
        last_used_at: image.last_used_at,
    }
}
