//! Layers, from a registry into files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc::{Receiver, channel};

use super::guard::shown_host;
use super::session::{Session, Timed, network};
use crate::digest::{Digest, Hasher};
use crate::limits::STEP_BYTES;
use crate::manifest::{Descriptor, Manifest};
use crate::{ImageError, Limits, Step};

/// As many as engines fetch at once.
const AT_ONCE: usize = 3;
/// Pieces of a body that wait to be written.
const WAITING: usize = 64;
const BUFFER: usize = 1 << 20;

/// Where a layer is put.
pub(super) fn file(folder: &Path, digest: Digest) -> PathBuf {
    folder.join(format!("layer-{}", digest.hex()))
}

pub(super) async fn layers(
    session: &Session,
    manifest: &Manifest,
    folder: &Path,
    limits: &Limits,
    progress: &(impl Fn(Step) + Send + Sync),
) -> Result<(), ImageError> {
    // An image may have a layer twice.
    let layers: BTreeMap<Digest, &Descriptor> =
        manifest.layers.iter().map(|layer| (layer.digest, layer)).collect();
    let done = Done {
        bytes: AtomicU64::new(0),
        reported: AtomicU64::new(0),
        total: layers.values().map(|layer| layer.size).sum(),
        progress,
    };
    done.report();
    let timed = Timed { stall: limits.stall, deadline: None };
    // No closure: with one, the compiler cannot tell that this may be sent to another thread.
    let mut downloads = Vec::with_capacity(layers.len());
    for layer in layers.into_values() {
        downloads.push(one(session, layer, file(folder, layer.digest), timed, &done));
    }
    stream::iter(downloads).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    done.report();
    Ok(())
}

struct Done<'a, F> {
    bytes: AtomicU64,
    reported: AtomicU64,
    total: u64,
    progress: &'a F,
}

impl<F: Fn(Step) + Send + Sync> Done<'_, F> {
    fn add(&self, bytes: u64) {
        let now = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let last = self.reported.load(Ordering::Relaxed);
        let is_due = now >= last + STEP_BYTES;
        if is_due && self.reported.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.report();
        }
    }

    fn report(&self) {
        (self.progress)(Step {
            message: "fetching layers".to_owned(),
            done_bytes: self.bytes.load(Ordering::Relaxed),
            total_bytes: Some(self.total),
        });
    }
}

async fn one<F: Fn(Step) + Send + Sync>(
    session: &Session,
    layer: &Descriptor,
    path: PathBuf,
    timed: Timed,
    done: &Done<'_, F>,
) -> Result<(), ImageError> {
    let (digest, size) = (layer.digest, layer.size);
    let mut response = session.get(&format!("blobs/{digest}"), "", timed).await?;
    let host = shown_host(response.url());
    let lies = |sent: u64| {
        ImageError::Broken(format!("{host} has {sent} bytes of {digest}, its manifest says {size}"))
    };
    if let Some(length) = response.content_length().filter(|length| *length != size) {
        return Err(lies(length));
    }
    let (pieces, received) = channel(WAITING);
    // Hashing and writing are done beside the connection.
    let writing = tokio::task::spawn_blocking(move || write(&path, received));
    let mut left = size;
    let sent: Result<(), ImageError> = async {
        while let Some(piece) =
            timed.wait(&host, response.chunk()).await?.map_err(|error| network(&host, &error))?
        {
            let length = piece.len() as u64;
            left = left.checked_sub(length).ok_or_else(|| {
                ImageError::Broken(format!("{host} sent more than the {size} bytes of {digest}"))
            })?;
            done.add(length);
            if pieces.send(piece).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
    .await;
    drop(pieces);
    let found = writing.await.map_err(|_| ImageError::CalledOff)?;
    sent?;
    let found = found?;
    if left > 0 {
        return Err(lies(size - left));
    }
    if found != digest {
        return Err(ImageError::Broken(format!("what {host} sent as {digest} is {found}")));
    }
    Ok(())
}

fn write(path: &Path, mut pieces: Receiver<Bytes>) -> Result<Digest, ImageError> {
    let failed = |error| ImageError::file("write", path, error);
    let mut file = BufWriter::with_capacity(BUFFER, File::create(path).map_err(failed)?);
    let mut hasher = Hasher::new();
    while let Some(piece) = pieces.blocking_recv() {
        hasher.update(&piece);
        file.write_all(&piece).map_err(failed)?;
    }
    file.flush().map_err(failed)?;
    Ok(hasher.finish())
}
