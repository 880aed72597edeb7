//! The base template: the read-only file system every sandbox starts from.
//!
//! Owns the template cache: one directory that several servers and data directories share. On the first start it
//! builds a Debian root file system with `mmdebstrap`, makes it the machine of the contract (user `sandbox`,
//! `/workspace`, locale, sudo, working pip and npm) and packs it into one ext4 image. Later starts find the image by
//! the hash of its recipe and only read its manifest.
//!
//! ```text
//!   look in the cache ──found──▶ Template
//!        │ not found
//!        ▼
//!   lock ▶ look again ▶ sweep leftovers ▶ mmdebstrap ▶ customise ▶ pack ▶ manifest ▶ Template
//! ```
//!
//! - A manifest is written last, so an image without one does not count and is swept.
//! - The cache is locked while building: a second server waits and then finds the result.
//! - Dropping the future ends the build: every program of it runs in a process and mount namespace of its own that
//!   dies with us, also when we are killed. Half-built directories go at the next build.
//! - Refuses to start a build that cannot end well: not root, programs missing, too little space.
//!
//! The digest is the SHA-256 of the image's bytes. Two builds of one recipe differ in time stamps and so in digest;
//! a disk made on one template can therefore never be mistaken for one made on another. Debian's updates come in
//! when the recipe changes or when somebody deletes the cached files. Nothing here touches a data directory.

mod authorities;
mod build;
pub(crate) mod contained;
mod image;
mod lock;
mod manifest;
mod meter;
mod mirror;
mod recipe;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use build::{any_cached, keyring_has_suite};
pub use contained::CommandError;
pub use manifest::Manifest;
pub use meter::Progress;

use meter::{Meter, Step};
use recipe::Recipe;
pub(crate) use recipe::{HOSTS, RESOLV_CONF};

/// Environment variable that names the template cache.
pub const CACHE_ENV: &str = "WARREN_TEMPLATE_CACHE";
/// The template cache when [`CACHE_ENV`] is not set.
pub const DEFAULT_CACHE: &str = "/var/cache/warren/templates";
/// Environment variable with the URL of a Debian archive to build from, and after a space, where it is not the
/// usual one, that of the security archive.
pub const MIRROR_ENV: &str = "WARREN_DEBIAN_MIRROR";
/// Name of the one template built here.
pub const BASE: &str = "base";
/// Free space a build asks for: the tree, the image beside it and the packages on their way in.
pub const BUILD_SPACE_BYTES: u64 = 3 * 1024 * 1024 * 1024;

/// How often [`ensure_base`] says where it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Let programs in sandboxes trust the certificate authorities that were added to this host by its owner.
    pub trust_host_cas: bool,
}

/// A template as sandboxes use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub name: &'static str,
    /// SHA-256 of the image's bytes, 64 hex digits: fit for a file name.
    pub digest: String,
    /// A read-only ext4 image in the cache. It may go when a newer recipe has replaced it; keep a link or a copy.
    pub image: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("building the base template needs root: run the server with sudo")]
    NotRoot,
    #[error("`{program}` is missing: run `apt-get install {package}`")]
    ProgramMissing { program: &'static str, package: &'static str },
    #[error(
        "{path} is missing or too old to hold Debian trixie's keys: run `apt-get install debian-archive-keyring`, \
         or on an old release install that package from https://packages.debian.org/trixie/debian-archive-keyring"
    )]
    Keyring { path: &'static str },
    #[error(
        "building the base template needs {} MB free in {}, {} MB are: free some space or point {CACHE_ENV} elsewhere",
        needed / 1_000_000, path.display(), free / 1_000_000
    )]
    Space { path: PathBuf, needed: u64, free: u64 },
    #[error("{MIRROR_ENV} is not the URL of a Debian archive: `{value}` (expected http://HOST/debian)")]
    Mirror { value: String },
    #[error("could not {action}")]
    Command {
        action: &'static str,
        #[source]
        source: CommandError,
    },
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl TemplateError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Where templates are cached on this machine: [`CACHE_ENV`], else [`DEFAULT_CACHE`].
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os(CACHE_ENV)
        .filter(|value| !value.is_empty())
        .map_or_else(|| DEFAULT_CACHE.into(), PathBuf::from)
}

/// Certificate authorities that were added to this host by its owner: a file name and a certificate each.
pub(crate) fn host_authorities() -> Vec<(String, String)> {
    authorities::of_host().into_iter().collect()
}

/// Finds the base template in `cache`, or builds it there, and reports about twice a second how far it is.
///
/// # Errors
/// When a build is needed and this machine cannot do it, or when a step of it fails; nothing half-made is used later.
pub async fn ensure_base(
    cache: &Path,
    options: &BuildOptions,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<Template, TemplateError> {
    let recipe = {
        let options = options.clone();
        blocking(move || Recipe::gather(&options)).await?
    };
    if let Some(found) = find(cache, &recipe).await? {
        return Ok(found);
    }
    let meter = Meter::new();
    let work = build_once(cache, &recipe, &meter);
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            biased;
            done = &mut work => {
                if done.is_ok() {
                    meter.enter(Step::Done);
                    progress(meter.read().await);
                }
                return done;
            }
            _ = ticks.tick() => progress(meter.read().await),
        }
    }
}

async fn find(cache: &Path, recipe: &Recipe) -> Result<Option<Template>, TemplateError> {
    let (cache, hash) = (cache.to_owned(), recipe.hash().to_owned());
    blocking(move || manifest::find(&cache, &hash)).await
}

/// Builds under the lock, unless somebody else did while we waited for it.
async fn build_once(cache: &Path, recipe: &Recipe, meter: &Meter) -> Result<Template, TemplateError> {
    meter.enter(Step::Check);
    build::check_host()?;
    tokio::fs::create_dir_all(cache).await.map_err(TemplateError::io("create the template cache", cache))?;
    let _lock = lock::take(cache, meter).await?;
    if let Some(found) = find(cache, recipe).await? {
        return Ok(found);
    }
    meter.enter(Step::Check);
    let directory = cache.to_owned();
    blocking(move || {
        build::sweep(&directory)?;
        build::check_space(&directory)
    })
    .await?;
    let built = build::build(cache, recipe, meter).await?;
    let (directory, hash) = (cache.to_owned(), recipe.hash().to_owned());
    blocking(move || manifest::publish(&directory, &hash, built)).await
}

/// Runs file system work beside the async threads. A panic in it is a panic here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work that has begun cannot be cancelled, and the runtime ends before it is refused.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For tests that make namespaces; says so when they cannot.
    pub(super) fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("SKIP: this test makes namespaces and needs root");
        }
        root
    }

    #[tokio::test]
    async fn a_cancelled_build_leaves_a_cache_that_still_works() {
        if !is_root() || build::check_host().is_err() {
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        let options = BuildOptions::default();
        let (seen, mut started) = tokio::sync::mpsc::unbounded_channel();
        let building = ensure_base(cache.path(), &options, move |progress| {
            seen.send(progress.step).ok();
        });
        tokio::select! {
            done = building => panic!("a build cannot be done so soon: {done:?}"),
            () = async { while started.recv().await != Some(Step::Index.label()) {} } => {}
        }
        // The lock is free again, and what is left is swept.
        let _lock = lock::take(cache.path(), &Meter::new()).await.unwrap();
        build::sweep(cache.path()).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(cache.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, [".lock"]);
    }
}
