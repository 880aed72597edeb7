//! Layers, bottom to top, into a directory.
//!
//! What unpacks is the host's root and what is unpacked was written by a stranger, so a name is never given to the
//! kernel whole: [`tree`] opens the folder of each entry with `openat2` and `RESOLVE_IN_ROOT` (links lead where they
//! would lead after `chroot`, and never to another mount) and acts on the last part of the name there, which is never
//! followed. Names with `..` are refused; absolute ones start at the root, as they do for every engine.
//!
//! Device nodes are left out: a sandbox has its own `/dev`, and a character device 0/0 would be a whiteout to overlayfs.
//! So are attributes that mean something to the host. Nobody but us may be in the directory meanwhile.

mod attributes;
mod layer;
mod owner;
mod path;
mod remove;
mod times;
mod tree;

pub(crate) use self::owner::IDS;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use self::layer::Unpacking;
use self::tree::Tree;
use crate::decode::{Pieces, pipe};
use crate::limits::STEP_BYTES;
use crate::source::Source;
use crate::{ImageError, Limits, Step, tar};

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Of all layers, those that a later one replaced or removed included.
    pub entries: u64,
    /// Of files, likewise.
    pub bytes: u64,
    /// Device nodes that were left out.
    pub devices: u64,
    /// Extended attributes that were left out: those that only the host may set.
    pub attributes: u64,
}

impl Source {
    /// Unpacks all layers into `root`, an empty file system that nobody else is in. Blocks. Does not wait until it is on
    /// the disk.
    ///
    /// # Errors
    /// When the image is broken or beyond `limits`, when there is no space, or when it was called off. What is in `root`
    /// then is of no use.
    pub fn unpack(
        &self,
        root: &Path,
        limits: &Limits,
        called_off: &AtomicBool,
        progress: &(dyn Fn(Step) + Sync),
    ) -> Result<Unpacked, ImageError> {
        let read = AtomicU64::new(0);
        let (producer, pieces) = pipe(&self.layers, limits.unpacked_bytes, &read, called_off);
        thread::scope(|scope| {
            let inflating = thread::Builder::new().name("image-layers".to_owned());
            inflating
                .spawn_scoped(scope, move || producer.run())
                .map_err(|error| ImageError::io("start a thread", error))?;
            self.unpack_pieces(
                root,
                limits,
                called_off,
                &Report { source: self, read: &read, progress },
                pieces,
            )
        })
    }

    fn unpack_pieces(
        &self,
        root: &Path,
        limits: &Limits,
        called_off: &AtomicBool,
        report: &Report<'_>,
        mut pieces: Pieces<'_>,
    ) -> Result<Unpacked, ImageError> {
        let tree = Tree::open(root, limits, called_off)?;
        let mut unpacking = Unpacking::new(tree, limits);
        for (place, layer) in self.layers.iter().enumerate() {
            report.send(place);
            unpacking.begin_layer(place > 0);
            let mut reported = report.read.load(Ordering::Relaxed);
            let mut entries = tar::Reader::new(pieces);
            while let Some(entry) = entries.next()? {
                unpacking.apply(&entry, &mut entries)?;
                let read = report.read.load(Ordering::Relaxed);
                if read >= reported + STEP_BYTES {
                    reported = read;
                    report.send(place);
                }
            }
            pieces = entries.drain()?;
            if pieces.finish()? != layer.diff_id {
                return Err(ImageError::Broken(format!(
                    "layer {} does not have the digest it should",
                    place + 1
                )));
            }
        }
        unpacking.finish()
    }
}

struct Report<'a> {
    source: &'a Source,
    read: &'a AtomicU64,
    progress: &'a (dyn Fn(Step) + Sync),
}

impl Report<'_> {
    fn send(&self, place: usize) {
        (self.progress)(Step {
            message: format!("unpacking layer {} of {}", place + 1, self.source.layers.len()),
            done_bytes: self.read.load(Ordering::Relaxed),
            total_bytes: Some(self.source.stored_bytes()),
        });
    }
}
