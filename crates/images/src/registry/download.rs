//! Layers, from a registry into files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::guard::shown_host;
use super::patience::Patience;
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
/// Connections that one layer may take.
const MOST_CONNECTIONS: usize = 100;

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

/// A layer that comes in, in as many pieces as the connection breaks it into.
struct Incoming<'a, F> {
    session: &'a Session,
    layer: &'a Descriptor,
    timed: Timed,
    done: &'a Done<'a, F>,
    pieces: Sender<Bytes>,
    /// Bytes of it that came.
    received: u64,
}

async fn one<F: Fn(Step) + Send + Sync>(
    session: &Session,
    layer: &Descriptor,
    path: PathBuf,
    timed: Timed,
    done: &Done<'_, F>,
) -> Result<(), ImageError> {
    let (pieces, received) = channel(WAITING);
    // Hashing and writing are done beside the connection.
    let writing = tokio::task::spawn_blocking(move || write(&path, received));
    let mut incoming = Incoming { session, layer, timed, done, pieces, received: 0 };
    let came = incoming.all().await;
    drop(incoming);
    let found = writing.await.map_err(|_| ImageError::CalledOff)?;
    let host = came?;
    let (found, digest) = (found?, layer.digest);
    if found != digest {
        return Err(ImageError::Broken(format!("what {host} sent as {digest} is {found}")));
    }
    Ok(())
}

impl<F: Fn(Step) + Send + Sync> Incoming<'_, F> {
    /// The whole of it. A connection that is cut is taken up again where it broke off, and whoever cannot answer for the moment is
    /// asked again, as long as not too many in turn bring nothing.
    async fn all(&mut self) -> Result<String, ImageError> {
        let mut patience = Patience::default();
        let what = self.layer.digest.to_string();
        for _ in 0..MOST_CONNECTIONS {
            let before = self.received;
            let error = match self.some().await {
                Err(error) => error,
                end => return end,
            };
            patience.after(error, &what, self.received > before).await?;
        }
        Err(ImageError::Network {
            host: self.session.host(),
            why: format!("it was cut off {MOST_CONNECTIONS} times within one layer"),
        })
    }

    /// What one connection brings, to the end; who sent it.
    async fn some(&mut self) -> Result<String, ImageError> {
        let Descriptor { digest, size, .. } = *self.layer;
        let path = format!("blobs/{digest}");
        let mut response = self.session.get_from(&path, "", self.received, self.timed).await?;
        let host = shown_host(response.url());
        let lies = |sent: u64| {
            ImageError::Broken(format!("{host} has {sent} bytes of {digest}, its manifest says {size}"))
        };
        // Who does not know of parts sends all of it, and what is there already is passed over.
        let begin = if response.status() == StatusCode::PARTIAL_CONTENT { self.received } else { 0 };
        let mut known = self.received - begin;
        let mut left = size - begin;
        if let Some(length) = response.content_length().filter(|length| *length != left) {
            return Err(lies(begin + length));
        }
        let timed = self.timed;
        while let Some(mut piece) =
            timed.wait(&host, response.chunk()).await?.map_err(|error| network(&host, &error))?
        {
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
                ImageError::Broken(format!("{host} sent more than the {size} bytes of {digest}"))
            })?;
            let again = known.min(piece.len() as u64);
            known -= again;
            piece.advance(usize::try_from(again).unwrap_or(usize::MAX));
            if piece.is_empty() {
                continue;
            }
            let length = piece.len() as u64;
            self.done.add(length);
            self.received += length;
            if self.pieces.send(piece).await.is_err() {
                // The writer says why.
                return Ok(host);
            }
        }
        if left > 0 {
            return Err(lies(size - left));
        }
        Ok(host)
    }
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
