//! What templates and checkpoints take of the volume.
//!
//! Their files share blocks, so lengths and sums over them say nothing. The file system is asked where each file's blocks
//! are, and whether anybody else has them: what is counted is blocks of the volume, each once. Where it cannot say that
//! (a volume that is not XFS or btrfs), files count as if they shared nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use warren_node_api::{Held, Space};
use warren_runtime::extents::{Extent, extents};
use warren_types::CheckpointId;

/// Files to be counted.
pub(crate) struct Files {
    pub(crate) volume: PathBuf,
    /// Image of each template, and who is laid over it, by name.
    pub(crate) templates: BTreeMap<String, (PathBuf, u32)>,
    pub(crate) checkpoints: BTreeMap<CheckpointId, Vec<PathBuf>>,
}

/// Runs of bytes of the volume that something has; sorted and put together when they are counted.
#[derive(Default)]
struct Used(Vec<(u64, u64)>);

impl Files {
    /// Counts them; blocks. What is removed meanwhile counts as nothing.
    pub(crate) fn count(&self) -> io::Result<Space> {
        let mut used = Used::default();
        let mut templates = BTreeMap::new();
        for (name, (image, users)) in &self.templates {
            let held = used.add(std::slice::from_ref(image))?;
            templates.insert(name.clone(), Held { users: *users, ..held });
        }
        let mut checkpoints = BTreeMap::new();
        for (id, files) in &self.checkpoints {
            checkpoints.insert(id.clone(), used.add(files)?);
        }
        let volume = rustix::fs::statvfs(&self.volume)?;
        Ok(Space {
            volume_bytes: volume.f_blocks * volume.f_frsize,
            free_bytes: volume.f_bavail * volume.f_frsize,
            used_bytes: used.total(),
            templates,
            checkpoints,
        })
    }
}

impl Used {
    /// Adds files that come and go together, and returns what they hold.
    fn add(&mut self, files: &[PathBuf]) -> io::Result<Held> {
        let mut own = Self::default();
        let mut held = Held { bytes: 0, own_bytes: 0, users: 0 };
        for file in files {
            for extent in extents_of(file)? {
                held.bytes += extent.length;
                if !extent.shared {
                    held.own_bytes += extent.length;
                }
                own.0.push((extent.physical, extent.length));
            }
        }
        self.0.append(&mut own.0);
        Ok(held)
    }

    /// Bytes that are in any of them.
    fn total(&mut self) -> u64 {
        self.0.sort_unstable();
        let (mut total, mut end) = (0, 0);
        for &(start, length) in &self.0 {
            let (start, past) = (start.max(end), start + length);
            total += past.saturating_sub(start);
            end = end.max(past);
        }
        total
    }
}

fn extents_of(path: &Path) -> io::Result<Vec<Extent>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    match extents(&file) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let metadata = file.metadata()?;
            // Nowhere in particular, so that no two are taken for the same.
            let physical = metadata.ino() << 44;
            Ok(vec![Extent { physical, length: metadata.blocks() * 512, shared: false }])
        }
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_is_counted_once() {
        let mut used = Used(vec![(100, 50), (0, 10), (120, 10), (140, 20), (10, 5), (200, 1)]);
        assert_eq!(used.total(), 15 + 60 + 1);
        assert_eq!(Used::default().total(), 0);
    }
}
