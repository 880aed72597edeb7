//! What is remembered of trees that went in, so that the next run sends only what changed.
//!
//! ```text
//! $XDG_CACHE_HOME/warren/trees/<key>/   lock  tree.json  manifest.json  baseline
//! ```
//!
//! One for each folder, server, image and size of machine. Losing it costs a full upload, nothing else. The lock is held from
//! looking to forking, and shared by who goes on forking: a run never removes the checkpoint that another is about to use.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Manifest, hash_of};

/// A tree that was not used for so long is forgotten.
const UNUSED: Duration = Duration::from_hours(24 * 14);
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const BASELINE: &str = "baseline";
const TREE: &str = "tree.json";
/// Locked together by all that go on forking.
const USES: &str = "uses";
const OLD: &str = "old-";

/// A checkpoint that has a tree in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tree {
    pub(crate) server: String,
    pub(crate) folder: PathBuf,
    pub(crate) checkpoint: String,
    /// The sandbox it was taken of.
    pub(crate) sandbox: String,
    /// Whether the listing of it tells times in whole seconds, and when it was made, in seconds.
    pub(crate) coarse: bool,
    pub(crate) listed: i64,
}

/// The place of one tree, locked.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    lock: File,
}

impl Place {
    /// Waits for another run on the same tree that is preparing it.
    pub(crate) fn lock(key: &[&str]) -> anyhow::Result<Self> {
        let folder = trees()?.join(&hash_of(key.join("\0").as_bytes())[..24]);
        make_private(&folder)?;
        let failed = || format!("could not lock {}", folder.display());
        let lock = File::create(folder.join("lock")).with_context(failed)?;
        lock.lock().with_context(failed)?;
        Ok(Self { folder, lock })
    }

    pub(crate) fn load(&self) -> Option<(Tree, Manifest)> {
        Some((read_json(&self.folder.join(TREE))?, read_json(&self.folder.join(MANIFEST))?))
    }

    pub(crate) fn store(&self, tree: &Tree, manifest: &Manifest, baseline: &[u8]) -> anyhow::Result<()> {
        // The name of the checkpoint last: without it the rest is not read.
        self.forget();
        write(&self.folder.join(MANIFEST), &serde_json::to_vec(manifest)?)?;
        write(&self.folder.join(BASELINE), baseline)?;
        write(&self.folder.join(TREE), &serde_json::to_vec(tree)?)
    }

    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(self.folder.join(TREE));
    }

    /// Lets other runs look at the tree, while its checkpoint stays: it goes on to be forked.
    pub(crate) fn share(&mut self) -> anyhow::Result<()> {
        let failed = || format!("could not lock {}", self.folder.display());
        let uses = File::create(self.folder.join(USES)).with_context(failed)?;
        uses.lock_shared().with_context(failed)?;
        // Only then is the other lock let go.
        self.lock = uses;
        Ok(())
    }

    /// Whether another run goes on forking a checkpoint of this place.
    fn is_shared(&self) -> bool {
        File::create(self.folder.join(USES)).is_ok_and(|uses| uses.try_lock().is_err())
    }

    /// Notes a checkpoint that is replaced.
    pub(crate) fn retire(&self, tree: &Tree) -> anyhow::Result<()> {
        write(
            &self.folder.join(format!("{OLD}{}", hash_of(tree.checkpoint.as_bytes()))),
            &serde_json::to_vec(tree)?,
        )
    }

    /// Checkpoints that were replaced and that nobody forks any more; they are told once.
    pub(crate) fn retired(&self) -> Vec<Tree> {
        if self.is_shared() {
            return Vec::new();
        }
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let old = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(OLD));
        let read = old.filter_map(|entry| {
            let tree = read_json(&entry.path());
            let _ = fs::remove_file(entry.path());
            tree
        });
        read.collect()
    }

    /// Says that it was used just now.
    pub(crate) fn touch(&self) {
        if let Ok(file) = File::open(self.folder.join(TREE)) {
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

/// Forgets trees of this server that were not used for long or whose folder is gone; their checkpoints are no use any more.
pub(crate) fn forget_unused(server: &str) -> Vec<Tree> {
    let mut forgotten = Vec::new();
    let Ok(entries) = trees().and_then(|trees| Ok(fs::read_dir(trees)?)) else { return forgotten };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let path = folder.join(TREE);
        let Some(tree) = read_json::<Tree>(&path).filter(|tree| tree.server == server) else { continue };
        let used = fs::metadata(&path).and_then(|metadata| metadata.modified());
        let is_old = used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > UNUSED));
        let is_free = || File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        if (is_old || !tree.folder.exists()) && is_free() {
            let _ = fs::remove_dir_all(&folder);
            forgotten.push(tree);
        }
    }
    forgotten
}

fn trees() -> anyhow::Result<PathBuf> {
    Ok(base("XDG_CACHE_HOME", ".cache")?.join("trees"))
}

/// Where runs are recorded.
pub(crate) fn runs() -> anyhow::Result<PathBuf> {
    Ok(base("XDG_STATE_HOME", ".local/state")?.join("agents"))
}

fn base(variable: &str, below_home: &str) -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)));
    Ok(base.with_context(|| format!("neither {variable} nor HOME names a folder"))?.join("warren"))
}

/// Names and content of the user's files are nobody else's.
pub(crate) fn make_private(folder: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not create {}", folder.display()))
}

/// Writes a file as a whole or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("could not write {}", path.display());
    let mut file =
        tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("."))).with_context(failed)?;
    file.write_all(content).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

/// None when there is none, or when it cannot be understood: it was written by another version.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
