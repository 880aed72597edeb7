//! Roots prepared ahead of their use.
//!
//! ```text
//!   bare       a network slot, namespaces, /dev, /run, /sys            for a disk that is there: a fork, a wake, a restore
//!   furnished  the same with an empty disk of the usual size           for a create
//!   of a fork  the same with a disk that shares all of a checkpoint's  for the next fork of one that was lately forked
//! ```
//!
//! All of that takes time and none of it depends on the sandbox that will live there. No process of a sandbox runs in a
//! prepared root, and one that is never used goes with this process. When they are used up, one is prepared on the spot
//! in the same way.
//!
//! Whoever takes a root of a checkpoint has compared the checkpoint with its digest ([`Checkpoints::open_whole`]) just like
//! whoever uses its image: when it was damaged meanwhile, the roots made before are let go of with it, good as they are,
//! because whether one is used must not depend on the stock. When it is deleted, nothing of its content stays here.
//!
//! [`Checkpoints::open_whole`]: crate::checkpoint::Checkpoints::open_whole

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warren_runtime_container::{self as runtime, Disk, Preparation, Root};
use warren_types::size::MIN_DISK_MB;
use warren_types::{CheckpointId, Error};

use crate::disk;
use crate::lately::{Lately, Limits, Missing, Remembered};
use crate::registry::Host;
use warren_network::Slot;

/// Furnished roots kept ready.
const FURNISHED: usize = 8;
/// Bare ones.
const BARE: usize = 4;
/// Those of forks.
const FORKS: Limits = Limits { checkpoints: 3, each: 4, patience: Duration::from_secs(5 * 60) };
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
    /// Which lxcfs it reads through, see [`Host::lxcfs_count`].
    lxcfs: u64,
}

/// A root that waits for its disk; the same holds for it.
struct Bare {
    slot: Slot,
    root: runtime::Bare,
    lxcfs: u64,
}

/// A root and the image of its disk.
type WithImage = (PathBuf, Prepared);

pub(crate) struct Stock {
    furnished: Mutex<VecDeque<WithImage>>,
    /// Over the template that new sandboxes start from.
    bare: Mutex<VecDeque<Bare>>,
    /// On disks of checkpoints, each over the template of its checkpoint.
    forks: Lately<WithImage>,
    /// Held while one of those is made.
    making: tokio::sync::Mutex<()>,
    /// The stock has shrunk, or more is wanted.
    wanted: Notify,
}

/// What to add to the stock.
enum Addition {
    Bare,
    Furnished,
    Fork(Missing),
}

impl Host {
    /// Whether a prepared root is as it was when it was prepared.
    fn is_usable(&self, is_alive: bool, lxcfs: u64) -> bool {
        if !is_alive {
            warn!("a prepared root was lost: its process was killed");
        }
        is_alive && lxcfs == self.lxcfs_count()
    }
}

// === impl Bare ===

impl Bare {
    /// One over the template `template_digest`, from the stock where there is one.
    async fn take(host: &Host, template_digest: &str) -> Result<Self, Error> {
        while template_digest == host.disks.template()
            && let Some(bare) = host.stock.take_bare()
        {
            if host.is_usable(bare.root.is_alive(), bare.lxcfs) {
                return Ok(bare);
            }
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
        let lxcfs = host.lxcfs_count();
        let preparation = Preparation {
            hostname: "sandbox".into(),
            id_base: host.network.plan().id_base(slot.index),
            template_root,
            stage_dir: host.stage_dir.clone(),
            lxcfs: host.lxcfs.as_ref().map(|lxcfs| lxcfs.folder.clone()),
        };
        let prepared = match host.launcher() {
            Ok(launcher) => runtime::Bare::prepare(&launcher, &preparation, slot.namespace())
                .await
                .map_err(|error| trouble("its root", &error)),
            Err(error) => Err(trouble("the launcher does not run", &error)),
        };
        match prepared {
            Ok(root) => Ok(Self { slot, root, lxcfs }),
            Err(error) => {
                host.network.retire(slot);
                Err(error)
            }
        }
    }

    async fn furnish(self, host: &Host, disk: Disk) -> Result<Prepared, Error> {
        let disk_device = disk.device().to_owned();
        match self.root.furnish(disk).await {
            Ok(root) => Ok(Prepared { slot: self.slot, root, disk_device, lxcfs: self.lxcfs }),
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
        match Self::take_whole(host, image, || host.stock.take_furnished(disk_mb))? {
            Some(prepared) => Ok(prepared),
            None => Self::on_empty(host, disk_mb, image).await,
        }
    }

    /// A root on the disk of a checkpoint, which gets the name `image`, if the stock has one. The checkpoint must have been
    /// compared with its digest.
    pub(crate) fn fork(host: &Host, checkpoint: &CheckpointId, image: &Path) -> Result<Option<Self>, Error> {
        Self::take_whole(host, image, || host.stock.take_fork(checkpoint))
    }

    /// The first that is as it was when it was prepared, with its disk in the file `image`.
    fn take_whole(
        host: &Host,
        image: &Path,
        mut take: impl FnMut() -> Option<WithImage>,
    ) -> Result<Option<Self>, Error> {
        while let Some((made, prepared)) = take() {
            if !host.is_usable(prepared.root.is_alive(), prepared.lxcfs) {
                drop(prepared.root);
                host.network.retire(prepared.slot);
                let _ = std::fs::remove_file(made);
                continue;
            }
            if let Err(error) = std::fs::rename(made, image) {
                host.network.retire(prepared.slot);
                return Err(no_disk(&error));
            }
            return Ok(Some(prepared));
        }
        Ok(None)
    }

    /// Has on its disk what preparing it has written. While it waits for its sandbox the volume may become full, and a disk
    /// whose journal found no room then takes nothing any more, however much there is when it is used.
    async fn written_out(self, host: &Host, image: &Path) -> Result<Self, Error> {
        let device = self.disk_device.clone();
        let written =
            tokio::task::spawn_blocking(move || runtime::MountedDisk::open(&device)?.write_out()).await;
        match written.map_err(io::Error::other).flatten() {
            Ok(()) => Ok(self),
            Err(error) => {
                let_go(host, vec![(image.to_owned(), self)]).await;
                Err(no_disk(&error))
            }
        }
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

impl Default for Stock {
    fn default() -> Self {
        Self {
            furnished: Mutex::default(),
            bare: Mutex::default(),
            forks: Lately::new(FORKS),
            making: tokio::sync::Mutex::default(),
            wanted: Notify::new(),
        }
    }
}

impl Stock {
    fn take_furnished(&self, disk_mb: u32) -> Option<WithImage> {
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

    fn take_fork(&self, checkpoint: &CheckpointId) -> Option<WithImage> {
        let taken = self.forks.take(checkpoint);
        self.wanted.notify_one();
        taken
    }

    /// That checkpoint, of a container, will be forked.
    pub(crate) fn expect(&self, checkpoint: &CheckpointId) {
        self.forks.expect(checkpoint);
        self.wanted.notify_one();
    }

    /// Lets go of everything that shares a checkpoint's blocks; returns when that is done. Nobody may be able to open the
    /// checkpoint any more.
    pub(crate) async fn forget(&self, host: &Host, checkpoint: &CheckpointId) {
        let forgotten = self.forks.forget(checkpoint);
        // Whoever is making one of it will find that it is not wanted.
        let _nobody_makes_one = self.making.lock().await;
        let_go(host, forgotten).await;
    }

    /// Whether there are that many of each.
    fn has(&self, furnished: usize, bare: usize) -> bool {
        lock(&self.furnished).len() >= furnished && lock(&self.bare).len() >= bare
    }

    /// Bare ones first, because all others are made of them; then what there is little of.
    fn addition(&self) -> Option<Addition> {
        if !self.has(0, BARE) {
            return Some(Addition::Bare);
        }
        if !self.has(FURNISHED / 2 + 1, 0) {
            return Some(Addition::Furnished);
        }
        let fork = self.forks.missing().map(Addition::Fork);
        fork.or_else(|| (!self.has(FURNISHED, 0)).then_some(Addition::Furnished))
    }

    /// Returns when there may be something to do.
    async fn changed(&self) {
        tokio::select! {
            () = self.wanted.notified() => {}
            () = self.forks.expired() => return,
        }
        // Whoever took a root is being started at this moment and needs the machine more.
        if self.has(FURNISHED / 2 + 1, BARE / 2 + 1) {
            tokio::time::sleep(REFILL_AFTER).await;
        }
    }
}

fn lock<T>(shelf: &Mutex<T>) -> MutexGuard<'_, T> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the stock of `host` filled until `stop`, and lets go of it then.
pub(crate) async fn fill(host: Arc<Host>, stop: CancellationToken) {
    let stock = &host.stock;
    let mut remembered = Remembered::read(host.disks.volume().join("forked-containers"));
    remembered.checkpoints().iter().for_each(|checkpoint| stock.expect(checkpoint));
    let filled = async {
        for number in 0_u64.. {
            let addition = loop {
                let_go(&host, stock.forks.surplus()).await;
                remembered.keep(stock.forks.checkpoints());
                match stock.addition() {
                    Some(addition) => break addition,
                    None => stock.changed().await,
                }
            };
            if let Err(error) = add(&host, addition, number).await {
                warn!(%error, "could not prepare a root ahead of its use");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    };
    stop.run_until_cancelled(filled).await;
    lock(&stock.furnished).clear();
    lock(&stock.bare).clear();
    let_go(&host, stock.forks.clear()).await;
}

async fn add(host: &Host, addition: Addition, number: u64) -> Result<(), Error> {
    let stock = &host.stock;
    match addition {
        Addition::Bare => {
            let bare = Bare::make(host, host.disks.template()).await?;
            lock(&stock.bare).push_back(bare);
        }
        Addition::Furnished => {
            let image = host.disks.stock_dir().join(format!("{number}.img"));
            let made = async {
                Prepared::on_empty(host, MIN_DISK_MB, &image).await?.written_out(host, &image).await
            };
            let prepared = made.await.inspect_err(|_| drop(std::fs::remove_file(&image)))?;
            lock(&stock.furnished).push_back((image, prepared));
        }
        Addition::Fork(missing) => add_fork(host, &missing, number).await,
    }
    Ok(())
}

/// What cannot be prepared of a checkpoint is not tried again before somebody asks for it, and is told why then.
async fn add_fork(host: &Host, missing: &Missing, number: u64) {
    let (stock, checkpoint) = (&host.stock, &missing.checkpoint);
    let _making = stock.making.lock().await;
    // No other installation has an image of that name: its device can be told from theirs.
    let image = host.disks.stock_dir().join(format!("{checkpoint}-{number}.img"));
    let unwanted = match prepare_fork(host, checkpoint, &image).await {
        Ok(prepared) => stock.forks.put(missing, (image, prepared)).err().into_iter().collect(),
        Err(error) => {
            debug!(%error, %checkpoint, "no root could be prepared for the next fork");
            let _ = std::fs::remove_file(&image);
            stock.forks.give_up(missing)
        }
    };
    let_go(host, unwanted).await;
}

async fn prepare_fork(host: &Host, checkpoint: &CheckpointId, image: &Path) -> Result<Prepared, Error> {
    let whole = host.checkpoints.open_whole(checkpoint).await?;
    let template_digest = whole.manifest.template_digest.clone();
    let attach =
        async { host.disks.make_from(whole.image, image.to_owned()).await.map_err(|error| no_disk(&error)) };
    Prepared::on(host, &template_digest, image, attach).await?.written_out(host, image).await
}

/// Ends roots that will not be used, and removes their disks.
async fn let_go(host: &Host, unused: Vec<WithImage>) {
    for (image, Prepared { slot, root, disk_device, .. }) in unused {
        drop(root);
        host.network.retire(slot);
        if let Err(error) = disk::wait_released(&disk_device, &image).await {
            warn!(%error, image = %image.display(), "a disk is still attached");
        }
        let _ = std::fs::remove_file(image);
    }
}
