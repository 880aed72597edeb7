//! Roots prepared ahead of their use.
//!
//! ```text
//!   bare       a network slot, namespaces, /dev, /run, /sys            for a disk that is there: a fork, a wake, a restore
//!   furnished  the same with an empty disk of the usual size           for a create
//! ```
//!
//! All of that takes time and none of it depends on the sandbox that will live there. No process of a sandbox runs in a
//! prepared root, and one that is never used goes with this process. When they are used up, one is prepared on the spot
//! in the same way.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use warren_runtime_container::{self as runtime, Disk, Preparation, Root};
use warren_types::Error;
use warren_types::size::MIN_DISK_MB;

use crate::disk;
use crate::registry::Host;
use warren_network::Slot;

/// Furnished roots kept ready.
const FURNISHED: usize = 8;
/// Bare ones.
const BARE: usize = 4;
/// How long a stock that is not low waits to be filled up.
const REFILL_AFTER: Duration = Duration::from_millis(50);
/// Pause after a root could not be prepared.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A root that waits for its sandbox. Dropping it lets go of everything; its slot must be retired.
pub(crate) struct Prepared {
    pub(crate) slot: Slot,
    pub(crate) root: Root,
    /// The loop device of its disk, as `major:minor`.
    pub(crate) disk_device: String,
}

/// A root that waits for its disk; the same holds for it.
struct Bare {
    slot: Slot,
    root: runtime::Bare,
}

#[derive(Default)]
pub(crate) struct Stock {
    /// Each with the image of its disk.
    furnished: Mutex<VecDeque<(PathBuf, Prepared)>>,
    /// Over the template that new sandboxes start from.
    bare: Mutex<VecDeque<Bare>>,
    /// The stock has shrunk.
    wanted: Notify,
}

// === impl Bare ===

impl Bare {
    /// One over the template `template_digest`, from the stock where there is one.
    async fn take(host: &Host, template_digest: &str) -> Result<Self, Error> {
        while template_digest == host.disks.template()
            && let Some(bare) = host.stock.take_bare()
        {
            if bare.root.is_alive() {
                return Ok(bare);
            }
            warn!("a prepared root was lost: its process was killed");
            host.network.retire(bare.slot);
        }
        Self::make(host, template_digest).await
    }

    async fn make(host: &Host, template_digest: &str) -> Result<Self, Error> {
        let template_root = host
            .disks
            .template_root(template_digest)
            .await
            .map_err(|error| trouble("its template cannot be used", &error))?;
        let slot = host.network.take().await.map_err(|error| trouble("no network", &error))?;
        let preparation = Preparation {
            hostname: "sandbox".into(),
            id_base: host.network.plan().id_base(slot.index),
            template_root,
            stage_dir: host.stage_dir.clone(),
            lxcfs: host.lxcfs.clone(),
        };
        let prepared = match host.launcher() {
            Ok(launcher) => runtime::Bare::prepare(&launcher, &preparation, slot.namespace())
                .await
                .map_err(|error| trouble("its root", &error)),
            Err(error) => Err(trouble("the launcher does not run", &error)),
        };
        match prepared {
            Ok(root) => Ok(Self { slot, root }),
            Err(error) => {
                host.network.retire(slot);
                Err(error)
            }
        }
    }

    async fn furnish(self, host: &Host, disk: Disk) -> Result<Prepared, Error> {
        let disk_device = disk.device().to_owned();
        match self.root.furnish(disk).await {
            Ok(root) => Ok(Prepared { slot: self.slot, root, disk_device }),
            Err(error) => {
                host.network.retire(self.slot);
                Err(trouble("its root", &error))
            }
        }
    }
}

// === impl Prepared ===

impl Prepared {
    /// A root over the template `template_digest` on the disk `image`, which `attach` attaches meanwhile. On failure it is
    /// no longer attached.
    pub(crate) async fn on(
        host: &Host,
        template_digest: &str,
        image: &Path,
        attach: impl Future<Output = Result<Disk, Error>>,
    ) -> Result<Self, Error> {
        let (bare, disk) = tokio::join!(Bare::take(host, template_digest), attach);
        let device = disk.as_ref().map(|disk| disk.device().to_owned()).ok();
        let prepared = match (bare, disk) {
            (Ok(bare), Ok(disk)) => bare.furnish(host, disk).await,
            (Ok(bare), Err(error)) => {
                host.network.retire(bare.slot);
                Err(error)
            }
            (Err(error), _) => Err(error),
        };
        if prepared.is_err()
            && let Some(device) = device
            && let Err(error) = disk::wait_released(&device, image).await
        {
            warn!(%error, image = %image.display(), "a disk is still attached");
        }
        prepared
    }

    /// A root with an empty disk of that size in the file `image`, from the stock where there is one.
    pub(crate) async fn empty(host: &Host, disk_mb: u32, image: &Path) -> Result<Self, Error> {
        while let Some((made, prepared)) = host.stock.take_furnished(disk_mb) {
            if !prepared.root.is_alive() {
                warn!("a prepared root was lost: its process was killed");
                host.network.retire(prepared.slot);
                let _ = std::fs::remove_file(made);
                continue;
            }
            if let Err(error) = std::fs::rename(made, image) {
                host.network.retire(prepared.slot);
                return Err(no_disk(&error));
            }
            return Ok(prepared);
        }
        Self::on_empty(host, disk_mb, image).await
    }

    async fn on_empty(host: &Host, disk_mb: u32, image: &Path) -> Result<Self, Error> {
        let attach =
            async { host.disks.make(disk_mb, image.to_owned()).await.map_err(|error| no_disk(&error)) };
        Self::on(host, host.disks.template(), image, attach).await
    }
}

fn trouble(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::unavailable(format!("the sandbox could not be started: {what}: {error}"))
}

fn no_disk(error: &io::Error) -> Error {
    Error::unavailable(format!("no disk could be made: {error}"))
}

// === impl Stock ===

impl Stock {
    fn take_furnished(&self, disk_mb: u32) -> Option<(PathBuf, Prepared)> {
        if disk_mb != MIN_DISK_MB {
            return None;
        }
        let taken = lock(&self.furnished).pop_front();
        self.wanted.notify_one();
        taken
    }

    fn take_bare(&self) -> Option<Bare> {
        let taken = lock(&self.bare).pop_front();
        self.wanted.notify_one();
        taken
    }

    /// Whether there are that many of each.
    fn has(&self, furnished: usize, bare: usize) -> bool {
        lock(&self.furnished).len() >= furnished && lock(&self.bare).len() >= bare
    }
}

fn lock<T>(shelf: &Mutex<T>) -> MutexGuard<'_, T> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the stock of `host` filled until `stop`, and lets go of it then.
pub(crate) async fn fill(host: Arc<Host>, stop: CancellationToken) {
    let stock = &host.stock;
    let filled = async {
        for number in 0_u64.. {
            while stock.has(FURNISHED, BARE) {
                stock.wanted.notified().await;
                // Whoever took a root is being started at this moment and needs the machine more.
                if stock.has(FURNISHED / 2 + 1, BARE / 2 + 1) {
                    tokio::time::sleep(REFILL_AFTER).await;
                }
            }
            if let Err(error) = add(&host, number).await {
                warn!(%error, "could not prepare a root ahead of its use");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    };
    stop.run_until_cancelled(filled).await;
    lock(&stock.furnished).clear();
    lock(&stock.bare).clear();
}

/// Adds a bare root, or furnishes one of them when there are enough.
async fn add(host: &Host, number: u64) -> Result<(), Error> {
    let stock = &host.stock;
    if !stock.has(0, BARE) {
        let bare = Bare::make(host, host.disks.template()).await?;
        lock(&stock.bare).push_back(bare);
        return Ok(());
    }
    let image = host.disks.stock_dir().join(format!("{number}.img"));
    let made = Prepared::on_empty(host, MIN_DISK_MB, &image).await;
    let prepared = made.inspect_err(|_| drop(std::fs::remove_file(&image)))?;
    lock(&stock.furnished).push_back((image, prepared));
    Ok(())
}
