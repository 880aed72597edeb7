//! The steps that need tools of the host: Debian's packages into a tree, the tree into an image.
//!
//! All of it happens in one `build-…` directory of the cache, which is removed when the build fails and swept when
//! it was cut off.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::contained::{CommandError, Contained, find_program};
use super::meter::{Meter, Step};
use super::recipe::{self, Recipe};
use super::{BUILD_SPACE_BYTES, TemplateError, authorities, blocking, image, manifest};

const PREFIX: &str = "build-";
/// A slow mirror takes minutes; one that is stuck must end.
const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(30 * 60);
const CUSTOMISE_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// A finished image that is not in its place yet.
pub(super) struct Built {
    pub(super) image: PathBuf,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) packages: BTreeMap<String, String>,
    /// Goes when this is dropped.
    pub(super) directory: Scratch,
}

/// A `build-…` directory, removed with its owner.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    fn create(cache: &Path) -> Result<Self, TemplateError> {
        let path = cache.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).map_err(TemplateError::io("create the build directory", &path))?;
        // Set-user-id programs of the tree are for sandboxes, not for users of this host.
        std::fs::set_permissions(&path, Permissions::from_mode(0o700))
            .map_err(TemplateError::io("protect the build directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now, because a cancelled command is still dying, the next build sweeps.
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "build directory is left for the next build");
        }
    }
}

/// Root and programs, before anything is written.
pub(super) fn check_host() -> Result<(), TemplateError> {
    if !rustix::process::geteuid().is_root() {
        return Err(TemplateError::NotRoot);
    }
    for (program, package) in [
        ("mmdebstrap", "mmdebstrap"),
        ("mke2fs", "e2fsprogs"),
        ("unshare", "util-linux"),
        ("chroot", "coreutils"),
        ("bash", "bash"),
    ] {
        if find_program(program).is_none() {
            return Err(TemplateError::ProgramMissing { program, package });
        }
    }
    if keyring_has_suite() { Ok(()) } else { Err(TemplateError::Keyring { path: recipe::KEYRING }) }
}

/// Whether this host can verify the suite's packages.
pub(crate) fn keyring_has_suite() -> bool {
    let keyring = std::fs::read(recipe::KEYRING).unwrap_or_default();
    keyring.windows(recipe::SUITE_KEY_ID.len()).any(|window| window == recipe::SUITE_KEY_ID)
}

pub(super) fn check_space(cache: &Path) -> Result<(), TemplateError> {
    let stat = rustix::fs::statvfs(cache)
        .map_err(|errno| TemplateError::io("read the free space of", cache)(errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < BUILD_SPACE_BYTES {
        return Err(TemplateError::Space { path: cache.to_owned(), needed: BUILD_SPACE_BYTES, free });
    }
    Ok(())
}

/// Removes what builds that were cut off have left. Only under the lock.
pub(super) fn sweep(cache: &Path) -> Result<(), TemplateError> {
    let entries = std::fs::read_dir(cache).map_err(TemplateError::io("list the template cache", cache))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let path = entry.path();
        // Programs of a server killed a moment ago may still write; they are dying.
        let mut last = Ok(());
        for _ in 0..20 {
            last = std::fs::remove_dir_all(&path);
            match &last {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    last = Ok(());
                    break;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        last.map_err(TemplateError::io("remove the half-built template", &path))?;
    }
    Ok(())
}

pub(super) async fn build(cache: &Path, recipe: &Recipe, meter: &Meter) -> Result<Built, TemplateError> {
    let directory = Scratch::create(cache)?;
    let tree = directory.0.join("tree");
    bootstrap(&tree, recipe, meter).await?;
    let packages = customise(&tree, recipe, meter).await?;
    meter.enter(Step::Pack);
    let image = directory.0.join("image.ext4");
    image::pack(&tree, &image).await?;
    meter.enter(Step::Digest);
    let path = image.clone();
    let (digest, size) = blocking(move || image::seal(&path)).await?;
    Ok(Built { image, digest, size, packages, directory })
}

async fn bootstrap(tree: &Path, recipe: &Recipe, meter: &Meter) -> Result<(), TemplateError> {
    meter.enter(Step::Index);
    meter.watch(Some(tree.to_owned()));
    let follow = |line: &str| {
        let Some(said) = line.strip_prefix("I: ") else { return meter.say(line) };
        let steps = [
            ("running apt-get update", Step::Index),
            ("downloading packages", Step::Fetch),
            ("extracting archives", Step::Unpack),
            ("installing essential", Step::Install),
            ("installing remaining", Step::Packages),
            ("cleaning package lists", Step::Clean),
        ];
        if let Some((_, step)) = steps.into_iter().find(|(text, _)| said.starts_with(text)) {
            meter.enter(step);
        }
        meter.say(said);
    };
    let done = Contained::new("mmdebstrap", BOOTSTRAP_DEADLINE)
        .args(recipe.mmdebstrap_args())
        .args([recipe::SUITE.as_ref(), tree.as_os_str()])
        .args(recipe.sources())
        .on_line(&follow)
        .run()
        .await;
    meter.watch(None);
    done.map(drop).map_err(command("install Debian into the base template"))
}

/// Turns a plain Debian into the machine of the contract; returns what is installed.
async fn customise(
    tree: &Path,
    recipe: &Recipe,
    meter: &Meter,
) -> Result<BTreeMap<String, String>, TemplateError> {
    meter.enter(Step::Customise);
    let mut files =
        recipe.files().into_iter().map(|f| (f.path.to_owned(), f.mode, f.text)).collect::<Vec<_>>();
    let known = authorities::in_file(&tree.join(authorities::BUNDLE));
    files.extend(
        recipe
            .authorities()
            .iter()
            .filter(|(name, _)| !known.contains_key(*name))
            .map(|(name, pem)| (format!("usr/local/share/ca-certificates/{name}"), 0o644, pem.clone())),
    );
    let root = tree.to_owned();
    blocking(move || files.iter().try_for_each(|(path, mode, text)| put(&root.join(path), *mode, text)))
        .await?;
    let follow = |line: &str| meter.say(line);
    let listing = Contained::new("chroot", CUSTOMISE_DEADLINE)
        .args([tree.as_os_str(), "/bin/bash".as_ref(), "-euc".as_ref(), recipe::CUSTOMISE.as_ref()])
        .on_line(&follow)
        .run()
        .await
        .map_err(command("set up the base template"))?;
    Ok(listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect())
}

/// Replaces whatever is there, a link of the tree's included, so that nothing is written through one.
fn put(path: &Path, mode: u32, text: &str) -> Result<(), TemplateError> {
    let write = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(mode))
    };
    write().map_err(TemplateError::io("write", path))
}

pub(super) fn command(action: &'static str) -> impl FnOnce(CommandError) -> TemplateError {
    move |source| TemplateError::Command { action, source }
}

/// Whether a template is in `cache`, for whatever recipe.
pub(crate) fn any_cached(cache: &Path) -> bool {
    manifest::all(cache).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_finished_images_stay() {
        let cache = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(cache.path().join("build-1/tree/etc")).unwrap();
        std::fs::write(cache.path().join("build-1/tree/etc/passwd"), "x").unwrap();
        std::fs::write(cache.path().join("base-a.ext4"), "x").unwrap();
        sweep(cache.path()).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(cache.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["base-a.ext4"]);
    }

    #[test]
    fn a_link_in_the_tree_is_replaced_not_followed() {
        let tree = tempfile::tempdir().unwrap();
        let outside = tree.path().join("outside");
        std::fs::write(&outside, "untouched").unwrap();
        std::os::unix::fs::symlink(&outside, tree.path().join("hosts")).unwrap();
        put(&tree.path().join("hosts"), 0o440, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
        let mode = std::fs::metadata(tree.path().join("hosts")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o440);
    }
}
