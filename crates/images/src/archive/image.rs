//! Which of an archive's members are the image.

use serde::Deserialize;

use super::members::Members;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::shown;
use crate::manifest::{Document, Manifest, NESTING, choose};
use crate::{ImageError, Limits, Reference, Source};

const INDEX: &str = "index.json";
const SAVED: &str = "manifest.json";

/// One image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn find(members: &Members, limits: &Limits) -> Result<Source, ImageError> {
    if let Some(index) = members.find(INDEX) {
        let index = index.read("its index", limits.manifest_bytes)?;
        return from_layout(members, &index, limits);
    }
    if let Some(saved) = members.find(SAVED) {
        let saved = saved.read("its manifest", limits.manifest_bytes)?;
        return from_saved(members, &saved, limits);
    }
    Err(ImageError::Broken(format!(
        "the archive has neither {INDEX} (an OCI layout) nor {SAVED} (`docker save`)"
    )))
}

fn from_layout(members: &Members, index: &[u8], limits: &Limits) -> Result<Source, ImageError> {
    let mut document = Document::parse(index, None)?;
    let mut digest = Digest::of(index);
    let mut reference = None;
    for _ in 0..=NESTING {
        let index = match document {
            Document::Manifest(manifest) => {
                return from_manifest(members, &manifest, digest, reference, limits);
            }
            Document::Index(index) => index,
        };
        let chosen = choose(&index)?;
        digest = chosen.digest;
        reference = reference.or_else(|| chosen.name().and_then(named));
        let json = members.blob(digest)?.read("its manifest", limits.manifest_bytes)?;
        document = Document::parse(&json, Some(&chosen.media_type))?;
    }
    Err(ImageError::Broken("its index names indexes without end".to_owned()))
}

fn from_manifest(
    members: &Members,
    manifest: &Manifest,
    digest: Digest,
    reference: Option<String>,
    limits: &Limits,
) -> Result<Source, ImageError> {
    manifest.check(limits)?;
    let config = members.blob(manifest.config.digest)?.read("its configuration", limits.config_bytes)?;
    let config = ImageConfig::parse(&config)?;
    let mut files = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let member = members.blob(layer.digest)?;
        if member.size != layer.size {
            let (digest, said, found) = (layer.digest, layer.size, member.size);
            return Err(ImageError::Broken(format!("{digest} has {found} bytes, its manifest says {said}")));
        }
        files.push((member.file.clone(), member.size));
    }
    Source::new(digest, reference, config, files)
}

/// What an archive says of itself, if it can be so.
fn named(text: &str) -> Option<String> {
    text.parse().ok().map(|reference: Reference| reference.to_string())
}

fn from_saved(members: &Members, json: &[u8], limits: &Limits) -> Result<Source, ImageError> {
    let broken = |why: String| ImageError::Broken(format!("its {SAVED} cannot be read: {why}"));
    let images: Vec<Saved> = serde_json::from_slice(json).map_err(|error| broken(error.to_string()))?;
    let image = match images.as_slice() {
        [] => return Err(broken("it names no image".to_owned())),
        [image] => image,
        several => {
            let names = several.iter().filter_map(|image| image.repo_tags.as_ref()?.first());
            let names: Vec<String> = names.take(20).map(|name| shown(name.as_bytes())).collect();
            let (count, names) = (several.len(), names.join(", "));
            return Err(ImageError::Unsupported(format!(
                "there are {count} images in it ({names}); save one"
            )));
        }
    };
    if image.layers.len() > limits.layers {
        let (layers, most) = (image.layers.len(), limits.layers);
        return Err(ImageError::TooLarge(format!("it has {layers} layers, {most} are taken")));
    }
    let member = |name: &str| {
        members
            .find(name)
            .ok_or_else(|| ImageError::Broken(format!("the archive has no {}", shown(name.as_bytes()))))
    };
    let config = member(&image.config)?;
    let json = config.read("its configuration", limits.config_bytes)?;
    // Its name says its digest, in a way of its own for each version.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    if let Some(said) = Digest::from_hex(stem.strip_suffix(".json").unwrap_or(stem))
        && said != config.digest
    {
        return Err(ImageError::Broken(format!("its configuration is not {said}, which its name says")));
    }
    let files = image.layers.iter().map(|name| member(name).map(|member| (member.file.clone(), member.size)));
    let files = files.collect::<Result<_, _>>()?;
    let reference = image.repo_tags.as_ref().and_then(|tags| named(tags.first()?));
    Source::new(config.digest, reference, ImageConfig::parse(&json)?, files)
}
