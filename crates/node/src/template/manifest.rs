//! What is finished in a cache: `base-HASH.ext4`, and beside it `base-HASH.json`, which makes it count.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::build::Built;
use super::{BASE, Template, TemplateError};

const FORMAT: u32 = 1;
const SIZE_LIMIT: u64 = 4 * 1024 * 1024;
/// Images kept beside a new one, for servers that still have an older recipe or other settings.
const KEEP_OTHERS: usize = 2;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub name: String,
    /// SHA-256 of the image's bytes.
    pub digest: String,
    pub size: u64,
    /// Hash of what it was made from.
    pub recipe: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Debian package to version.
    pub packages: BTreeMap<String, String>,
}

/// The image made from this recipe, if it is there in full. Its bytes are not read again: they were hashed when they
/// were written, and nothing here writes to them after.
pub(super) fn find(cache: &Path, recipe: &str) -> Result<Option<Template>, TemplateError> {
    let (image, path) = names(cache, recipe);
    let Some(manifest) = read(&path)? else { return Ok(None) };
    let size = std::fs::metadata(&image).map(|metadata| metadata.len()).ok();
    if manifest.format != FORMAT || manifest.recipe != recipe || size != Some(manifest.size) {
        return Ok(None);
    }
    Ok(Some(Template { name: BASE, digest: manifest.digest, image }))
}

/// Moves a finished image to its place, then says that it is there. Only under the lock.
pub(super) fn publish(cache: &Path, recipe: &str, built: Built) -> Result<Template, TemplateError> {
    let (image, path) = names(cache, recipe);
    let manifest = Manifest {
        format: FORMAT,
        name: BASE.to_owned(),
        digest: built.digest,
        size: built.size,
        recipe: recipe.to_owned(),
        created_at: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
        packages: built.packages,
    };
    let work = || -> io::Result<()> {
        std::fs::rename(&built.image, &image)?;
        let draft = path.with_extension("json.new");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        File::open(cache)?.sync_all()
    };
    work().map_err(TemplateError::io("publish the base template in", cache))?;
    drop(built.directory);
    forget_old(cache, &path);
    Ok(Template { name: BASE, digest: manifest.digest, image })
}

/// Paths of all manifests in a cache.
pub(super) fn all(cache: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("base-") && name.ends_with(".json")
    })
}

/// Removes images no recent recipe has made. One that cannot be removed stays; it does no harm.
fn forget_old(cache: &Path, newest: &Path) {
    let mut others: Vec<(SystemTime, PathBuf)> = all(cache)
        .filter(|path| path != newest)
        .map(|path| {
            (path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH), path)
        })
        .collect();
    others.sort();
    let surplus = others.len().saturating_sub(KEEP_OTHERS);
    for (_, path) in others.into_iter().take(surplus) {
        // The manifest first, so that no moment shows one without its image.
        for path in [path.clone(), path.with_extension("ext4")] {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "an old template stays in the cache");
            }
        }
    }
}

fn names(cache: &Path, recipe: &str) -> (PathBuf, PathBuf) {
    let stem = format!("base-{}", recipe.get(..16).unwrap_or(recipe));
    (cache.join(format!("{stem}.ext4")), cache.join(format!("{stem}.json")))
}

/// A manifest that cannot be understood is as good as none: the template is then built again.
fn read(path: &Path) -> Result<Option<Manifest>, TemplateError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > SIZE_LIMIT => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TemplateError::io("read the template manifest", path)(error)),
    }
    let bytes = std::fs::read(path).map_err(TemplateError::io("read the template manifest", path))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "0123456789abcdef0123456789abcdef";

    fn put(cache: &Path, recipe: &str, size: u64) {
        let (image, path) = names(cache, recipe);
        std::fs::write(image, "image").unwrap();
        let manifest = Manifest {
            format: FORMAT,
            name: BASE.into(),
            digest: "abc".into(),
            size,
            recipe: recipe.into(),
            created_at: 0,
            packages: BTreeMap::new(),
        };
        std::fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    #[test]
    fn only_a_whole_image_of_the_same_recipe_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let found = || find(cache.path(), RECIPE).unwrap();
        assert!(found().is_none());
        put(cache.path(), RECIPE, 5);
        assert_eq!(found().unwrap().digest, "abc");
        // Cut off, missing, garbled, of another recipe that shares the file name.
        put(cache.path(), RECIPE, 6);
        assert!(found().is_none());
        put(cache.path(), &format!("{}-other", &RECIPE[..16]), 5);
        assert!(found().is_none());
        put(cache.path(), RECIPE, 5);
        std::fs::remove_file(names(cache.path(), RECIPE).0).unwrap();
        assert!(found().is_none());
        std::fs::write(names(cache.path(), RECIPE).1, "{\"format\":").unwrap();
        assert!(found().is_none());
    }

    #[test]
    fn the_cache_does_not_grow_for_ever() {
        let cache = tempfile::tempdir().unwrap();
        for number in 0..6 {
            put(cache.path(), &format!("{number:016}"), 5);
        }
        let (_, newest) = names(cache.path(), &format!("{:016}", 0));
        forget_old(cache.path(), &newest);
        assert_eq!(all(cache.path()).count(), KEEP_OTHERS + 1);
        assert!(newest.exists());
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 2 * (KEEP_OTHERS + 1));
    }
}
