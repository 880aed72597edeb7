//! Empty writable images, one of each size: an ext4 with the folders an overlay needs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use super::volume::run_command;
use crate::config::CommandError;

/// Counts the ways they were made in. WHEN CHANGING HOW: raise it, or those that are there stay in use.
const FORMAT: u32 = 2;
/// `resize` is the blocks that one can be grown to while it is mounted. Room for their descriptors is set aside, and with more
/// of it (mke2fs itself prepares for a thousand times the size) growing it is too much at once for a journal of that size.
const EXTENDED: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,resize=134217728";

pub(super) struct Blanks {
    folder: PathBuf,
    /// By size in MiB; a cell is filled by the first who asks.
    ready: Mutex<BTreeMap<u32, Arc<OnceCell<PathBuf>>>>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BlankError {
    #[error("could not write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("could not format an empty disk")]
    Format(#[from] CommandError),
}

impl Blanks {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, ready: Mutex::default() }
    }

    pub(super) async fn ensure(&self, disk_mb: u32) -> Result<PathBuf, BlankError> {
        let cell = {
            let mut ready = self.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            ready.entry(disk_mb).or_default().clone()
        };
        cell.get_or_try_init(|| self.make(disk_mb)).await.cloned()
    }

    async fn make(&self, disk_mb: u32) -> Result<PathBuf, BlankError> {
        let image = self.folder.join(format!("{disk_mb}-{FORMAT}.img"));
        if image.exists() {
            return Ok(image);
        }
        let unfinished = image.with_extension("unfinished");
        let layers = self.folder.join(format!("{disk_mb}.layers"));
        let trouble = |path: &PathBuf, source| BlankError::Write { path: path.clone(), source };
        for name in ["upper", "work"] {
            let folder = layers.join(name);
            // The upper one is the root of a sandbox, whatever umask this server was started with.
            fs::create_dir_all(&folder)
                .and_then(|()| fs::set_permissions(&folder, Permissions::from_mode(0o755)))
                .map_err(|source| trouble(&layers, source))?;
        }
        File::create(&unfinished)
            .and_then(|file| file.set_len(u64::from(disk_mb) << 20))
            .map_err(|source| trouble(&unfinished, source))?;
        // No blocks kept back for root; a journal just large enough, because every sandbox writes its own; tables are
        // left unwritten until they are needed.
        let args =
            ["-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=16", "-E", EXTENDED, "-d"].map(OsStr::new);
        run_command(
            "mke2fs",
            "e2fsprogs",
            &[&args[..], &[layers.as_os_str(), unfinished.as_os_str()]].concat(),
        )
        .await?;
        File::open(&unfinished)
            .and_then(|file| file.sync_all())
            .map_err(|source| trouble(&unfinished, source))?;
        fs::rename(&unfinished, &image).map_err(|source| trouble(&image, source))?;
        let _ = fs::remove_dir_all(&layers);
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_root_of_a_sandbox_is_open_to_its_user_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let image = Blanks::new(folder.path().to_owned()).ensure(64).await.unwrap();
        let seen =
            std::process::Command::new("debugfs").args(["-R", "stat /upper"]).arg(image).output().unwrap();
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.contains("Mode:  0755"), "{seen}");
    }

    #[tokio::test]
    async fn a_disk_can_be_grown_by_who_has_it_mounted() {
        let folder = tempfile::tempdir().unwrap();
        let blanks = Blanks::new(folder.path().to_owned());
        for disk_mb in [warren_types::size::MIN_DISK_MB, warren_types::size::MAX_DISK_MB] {
            let image = File::open(blanks.ensure(disk_mb).await.unwrap()).unwrap();
            assert!(super::super::grows_while_mounted(&image).unwrap(), "{disk_mb}");
        }
        // As one that was made with what mke2fs takes by itself.
        let old = File::create_new(folder.path().join("old.img")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&old, &1024_u16.to_le_bytes(), 1024 + 0xCE).unwrap();
        let old = File::open(folder.path().join("old.img")).unwrap();
        assert!(!super::super::grows_while_mounted(&old).unwrap());
    }
}
