//! One build at a time in a cache, across servers. The lock goes with the descriptor, so with its holder.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::TemplateError;
use super::meter::{Meter, Step};

const RETRY: Duration = Duration::from_millis(200);

/// Held while a build runs.
pub(super) struct Lock {
    _file: File,
}

/// Waits until nobody else builds in `cache`. Polls, so that a caller who gives up leaves no thread behind.
pub(super) async fn take(cache: &Path, meter: &Meter) -> Result<Lock, TemplateError> {
    let path = cache.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(TemplateError::io("open the lock of the template cache", &path))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(Errno::WOULDBLOCK | Errno::INTR) => meter.enter(Step::Wait),
            Err(errno) => return Err(TemplateError::io("lock the template cache", &path)(errno.into())),
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_builder_waits_for_the_first() {
        let cache = tempfile::tempdir().unwrap();
        let meter = Meter::new();
        let first = take(cache.path(), &meter).await.unwrap();
        let second = take(cache.path(), &meter);
        tokio::pin!(second);
        assert!(tokio::time::timeout(RETRY * 3, &mut second).await.is_err());
        drop(first);
        second.await.unwrap();
    }
}
