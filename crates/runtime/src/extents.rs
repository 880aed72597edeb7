//! Where the blocks of a file are.

use std::fs::File;
use std::io;

use crate::sys;

/// A run of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins on the file system's device, in bytes.
    pub physical: u64,
    /// In bytes.
    pub length: u64,
    /// Another file has it too.
    pub shared: bool,
}

/// The blocks that `file` has. What was written a moment ago may have no place yet and is left out.
///
/// # Errors
/// `EOPNOTSUPP` where the file system does not say.
pub fn extents(file: &File) -> io::Result<Vec<Extent>> {
    const LAST: u32 = 1;
    const UNKNOWN: u32 = 2;
    const SHARED: u32 = 0x2000;
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        let part = sys::map_extents(file, from)?;
        let Some(last) = part.last() else { return Ok(found) };
        let (next, ended) = (last.logical + last.length, last.flags & LAST != 0);
        found.extend(part.iter().filter(|extent| extent.flags & UNKNOWN == 0).map(|extent| Extent {
            physical: extent.physical,
            length: extent.length,
            shared: extent.flags & SHARED != 0,
        }));
        if ended || next <= from {
            return Ok(found);
        }
        from = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn all_blocks_of_a_file_are_found_and_no_holes() {
        // More pieces than are asked for at once.
        let file = tempfile::tempfile().unwrap();
        for piece in 0..700 {
            file.write_all_at(&[1; 4096], piece * 65536).unwrap();
        }
        file.sync_all().unwrap();
        let extents = match extents(&file) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                eprintln!("SKIP: this file system does not say where blocks are");
                return;
            }
            extents => extents.unwrap(),
        };
        let total: u64 = extents.iter().map(|extent| extent.length).sum();
        assert!(total >= 700 * 4096, "{total}");
        assert!(total <= file.metadata().unwrap().blocks() * 512, "{total}");
        assert!(extents.iter().all(|extent| !extent.shared));
    }
}
