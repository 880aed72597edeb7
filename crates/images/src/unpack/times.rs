//! When things were last changed. Folders get theirs in the end: everything that is put into one would change it.

use std::collections::HashMap;

use rustix::fs::{self, Timespec, Timestamps};
use rustix::io::Errno;

use super::path::split;
use super::tree::Tree;
use crate::ImageError;
use crate::error::shown;

/// Paths of folders, in bytes. No image that is none of a bomb comes near it.
const MOST_BYTES: usize = 256 << 20;

/// Seconds and nanoseconds.
type Moment = (i64, u32);

#[derive(Default)]
pub(super) struct FolderTimes {
    /// With the order in which they were said: two paths may lead to one folder, and then the last counts.
    times: HashMap<Box<[u8]>, (usize, Moment)>,
    said: usize,
    bytes: usize,
}

// === impl FolderTimes ===

impl FolderTimes {
    pub(super) fn set(&mut self, path: &[u8], mtime: Moment) -> Result<(), ImageError> {
        self.said += 1;
        if self.times.insert(path.into(), (self.said, mtime)).is_none() {
            self.bytes += path.len();
        }
        if self.bytes > MOST_BYTES {
            return Err(ImageError::TooLarge("it has too many directories".to_owned()));
        }
        Ok(())
    }

    /// Folders that are gone again, or are something else now, are passed over.
    pub(super) fn apply(self, tree: &mut Tree<'_>) -> Result<(), ImageError> {
        let mut times: Vec<_> = self.times.into_iter().collect();
        times.sort_unstable_by_key(|(_, (said, _))| *said);
        for (path, (_, mtime)) in times {
            tree.check_called_off()?;
            let done = match split(&path) {
                None => fs::futimens(tree.root(), &stamps(mtime)),
                Some((above, name)) => match tree.find(above)? {
                    None => continue,
                    Some(above) => match above.open(name) {
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                        opened => opened.and_then(|folder| fs::futimens(&folder, &stamps(mtime))),
                    },
                },
            };
            done.map_err(|error| ImageError::io(format!("set the time of {}", shown(&path)), error))?;
        }
        Ok(())
    }
}

/// Of an entry; it was read when it was changed.
pub(super) fn stamps((seconds, nanoseconds): Moment) -> Timestamps {
    let moment = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: moment, last_modification: moment }
}
