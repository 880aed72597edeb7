//! Roots prepared ahead of their use: a network slot, an empty disk of the usual size, namespaces and mounts.
//!
//! All of that takes time and none of it depends on the sandbox that will live there. No process of a sandbox runs in a
//! prepared root, and one that is never used goes with this process.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use warren_runtime_container::{Disk, Preparation, Root};
use warren_types::Error;
use warren_types::size::MIN_DISK_MB;

use warren_network::Slot;
use crate::registry::Host;

/// Roots kept ready.
const STOCK: usize = 8;
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

#[derive(Default)]
pub(crate) struct Stock {
    ready: Mutex<VecDeque<(PathBuf, Prepared)>>,
    /// The stock has shrunk.
    wanted: Notify,
}

impl Prepared {
    /// Prepares a root over the template `template_digest` on `disk`.
    pub(crate) async fn make(host: &Host, disk: Disk, template_digest: &str) -> Result<Self, Error> {
        let trouble = |what: &str, error: &dyn std::fmt::Display| {
            Error::unavailable(format!("the sandbox could not be started: {what}: {error}"))
        };
        let template_root = host
            .disks
            .template_root(template_digest)
            .await
            .map_err(|error| trouble("its template cannot be used", &error))?;
        let slot = host.network.take().await.map_err(|error| trouble("no network", &error))?;
        let disk_device = disk.device().to_owned();
        let preparation = Preparation {
            hostname: "sandbox".into(),
            id_base: host.network.plan().id_base(slot.index),
            template_root,
            stage_dir: host.stage_dir.clone(),
            lxcfs: host.lxcfs.clone(),
        };
        let prepared = match host.launcher() {
            Ok(launcher) => Root::prepare(&launcher, &preparation, disk, slot.namespace())
                .await
                .map_err(|error| trouble("its root", &error)),
            Err(error) => Err(trouble("the launcher does not run", &error)),
        };
        match prepared {
            Ok(root) => Ok(Self { slot, root, disk_device }),
            Err(error) => {
                host.network.retire(slot);
                Err(error)
            }
        }
    }

    /// A root with an empty disk of that size in the file `image`, from the stock where there is one.
    pub(crate) async fn empty(host: &Host, disk_mb: u32, image: &Path) -> Result<Self, Error> {
        let no_disk = |error: io::Error| Error::unavailable(format!("no disk could be made: {error}"));
        while let Some((made, prepared)) = host.stock.take(disk_mb) {
            if !prepared.root.is_alive() {
                warn!("a prepared root was lost: its process was killed");
                host.network.retire(prepared.slot);
                let _ = std::fs::remove_file(made);
                continue;
            }
            if let Err(error) = std::fs::rename(made, image) {
                host.network.retire(prepared.slot);
                return Err(no_disk(error));
            }
            return Ok(prepared);
        }
        let disk = host.disks.make(disk_mb, image.to_owned()).await.map_err(no_disk)?;
        Self::make(host, disk, host.disks.template()).await
    }
}

impl Stock {
    fn take(&self, disk_mb: u32) -> Option<(PathBuf, Prepared)> {
        if disk_mb != MIN_DISK_MB {
            return None;
        }
        let taken = self.lock().pop_front();
        self.wanted.notify_one();
        taken
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(PathBuf, Prepared)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the stock of `host` filled until `stop`, and lets go of it then.
pub(crate) async fn fill(host: Arc<Host>, stop: CancellationToken) {
    let stock = &host.stock;
    let filled = async {
        for number in 0_u64.. {
            while stock.lock().len() >= STOCK {
                stock.wanted.notified().await;
                // Whoever took a root is being started at this moment and needs the machine more.
                if stock.lock().len() > STOCK / 2 {
                    tokio::time::sleep(REFILL_AFTER).await;
                }
            }
            let image = host.disks.stock_dir().join(format!("{number}.img"));
            let made = match host.disks.make(MIN_DISK_MB, image.clone()).await {
                Ok(disk) => Prepared::make(&host, disk, host.disks.template()).await,
                Err(error) => Err(Error::unavailable(format!("no disk could be made: {error}"))),
            };
            match made {
                Ok(prepared) => stock.lock().push_back((image, prepared)),
                Err(error) => {
                    warn!(%error, "could not prepare a root ahead of its use");
                    let _ = std::fs::remove_file(&image);
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    };
    stop.run_until_cancelled(filled).await;
    stock.lock().clear();
}
