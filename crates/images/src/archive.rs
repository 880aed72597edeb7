//! Images in archives: a tar of an OCI layout, or what `docker save` writes (which newer versions make both at once).
//!
//! The members are written to the folder under names of our own, so theirs matter only for finding them again. An
//! archive may be compressed as a whole, as layers may.

mod image;
mod members;
mod pump;

use std::path::Path;
use std::thread;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::timeout;

use self::members::Members;
use self::pump::Pump;
use crate::limits::STEP_BYTES;
use crate::{ImageError, Limits, Source, Step};

const PIECE: usize = 256 << 10;
const WAITING: usize = 16;

/// Reads an image from an archive into files in `folder`, which is to be empty. Reads to the end of the stream.
///
/// # Errors
/// When it is no archive of one image for this host, when something in it does not have its digest, when it is beyond
/// `limits` or stalls. What is in `folder` then is of no use.
pub async fn read_archive(
    mut stream: impl AsyncRead + Send + Unpin,
    folder: &Path,
    limits: &Limits,
    progress: impl Fn(Step) + Send + Sync,
) -> Result<Source, ImageError> {
    let (pieces, pump) = channel(WAITING);
    let (answer, answered) = tokio::sync::oneshot::channel();
    let (folder, own_limits) = (folder.to_owned(), limits.clone());
    // Not one of the runtime's threads for blocking work: it waits for the network, and there may be many.
    thread::Builder::new()
        .name("image-archive".to_owned())
        .spawn(move || {
            let members = Members::read(Pump::new(pump), &folder, &own_limits);
            let source = members.and_then(|members| image::find(&members, &own_limits));
            let _ = answer.send(source);
        })
        .map_err(|error| ImageError::io("start a thread", error))?;
    let sent = send(&mut stream, &pieces, limits, &progress).await;
    drop(pieces);
    // Who reads knows better what is wrong, unless it is that nothing more came.
    let source = answered.await.unwrap_or(Err(ImageError::CalledOff));
    sent.and(source)
}

async fn send(
    stream: &mut (impl AsyncRead + Send + Unpin),
    pieces: &Sender<Vec<u8>>,
    limits: &Limits,
    progress: &(impl Fn(Step) + Send + Sync),
) -> Result<(), ImageError> {
    let mut done = 0;
    let mut reported = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = timeout(limits.stall, stream.read_buf(&mut piece)).await;
        let read = read.map_err(|_| ImageError::Stalled {
            host: "who sends the archive".to_owned(),
            seconds: limits.stall.as_secs(),
        })?;
        let read = read.map_err(|error| ImageError::Network {
            host: "who sends the archive".to_owned(),
            why: error.to_string(),
        })?;
        if read == 0 {
            // An empty piece is the end; a channel that closes without one is an error.
            let _ = pieces.send(Vec::new()).await;
            return Ok(());
        }
        done += read as u64;
        if done >= reported + STEP_BYTES {
            reported = done;
            progress(Step { message: "reading the archive".to_owned(), done_bytes: done, total_bytes: None });
        }
        if done > limits.stored_bytes {
            let most = limits.stored_bytes;
            return Err(ImageError::TooLarge(format!("the archive has more than {most} bytes")));
        }
        if pieces.send(piece).await.is_err() {
            return Ok(());
        }
    }
}
