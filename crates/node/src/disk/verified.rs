//! Files whose content was compared with its digest, and has not changed since.
//!
//! A file is known by inode, length and time of change: whoever writes to it, or puts another in its place, changes one of
//! them. So a checkpoint that is forked a thousand times is read once. Kept in memory only: each start of the node reads
//! each file again before it is first used.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::digest;

/// Files remembered; more than that and all are forgotten.
const MAX_FILES: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<Stamp, String>>);

impl Verified {
    /// Whether `image` has that digest; read unless it is known.
    pub(crate) fn check(&self, image: &File, wanted: &str, cancelled: &AtomicBool) -> io::Result<bool> {
        let stamp = Stamp::of(image)?;
        if self.lock().get(&stamp).is_some_and(|known| known == wanted) {
            return Ok(true);
        }
        let found = digest::of_image(image, cancelled)?;
        // What changes while it is read is not what was read.
        let unchanged = Stamp::of(image)? == stamp;
        if unchanged {
            self.keep(stamp, found.clone());
        }
        Ok(unchanged && found == wanted)
    }

    /// The digest of `image`, which nobody else writes to; remembered.
    pub(crate) fn measure(&self, image: &File, cancelled: &AtomicBool) -> io::Result<String> {
        let stamp = Stamp::of(image)?;
        let found = digest::of_image(image, cancelled)?;
        if Stamp::of(image)? != stamp {
            return Err(io::Error::other("the image was changed while it was read"));
        }
        self.keep(stamp, found.clone());
        Ok(found)
    }

    /// Remembers a digest that is known without reading: `image` shares all its blocks with one that was compared.
    pub(crate) fn know(&self, image: &File, digest: &str) -> io::Result<()> {
        self.keep(Stamp::of(image)?, digest.to_owned());
        Ok(())
    }

    /// Has `image` read again before it is next believed: whoever uses it has reason to doubt what it holds.
    pub(crate) fn forget(&self, image: &File) -> io::Result<()> {
        self.lock().remove(&Stamp::of(image)?);
        Ok(())
    }

    fn keep(&self, stamp: Stamp, digest: String) {
        let mut known = self.lock();
        if known.len() >= MAX_FILES {
            known.clear();
        }
        known.insert(stamp, digest);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Stamp, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    fn of(image: &File) -> io::Result<Self> {
        let metadata = image.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_is_read_once_until_it_changes() {
        let go_on = AtomicBool::new(false);
        // Reading is impossible with this one: only what is remembered can be answered.
        let stop = AtomicBool::new(true);
        let verified = Verified::default();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"content", 5000).unwrap();
        let digest = verified.measure(&file, &go_on).unwrap();
        assert!(verified.check(&file, &digest, &stop).unwrap());
        verified.forget(&file).unwrap();
        assert!(verified.check(&file, &digest, &stop).is_err(), "it has to read again");
        assert!(verified.check(&file, &digest, &go_on).unwrap());
        assert!(verified.check(&file, "blake3:other", &stop).is_err(), "another digest is not remembered");
        assert!(!verified.check(&file, "blake3:other", &go_on).unwrap());

        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all_at(b"C", 5000).unwrap();
        assert!(verified.check(&file, &digest, &stop).is_err(), "it has to read again");
        assert!(!verified.check(&file, &digest, &go_on).unwrap());
        file.write_all_at(b"c", 5000).unwrap();
        assert!(verified.check(&file, &digest, &go_on).unwrap());
    }
}
