//! Names of entries.

use crate::error::shown;
use crate::{ImageError, Limits};

/// A path below the root: no empty parts, no `.` and no `..` in it. The root itself is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryPath(Vec<u8>);

/// What Linux file systems take.
const LONGEST_PART: usize = 255;

// === impl EntryPath ===

impl EntryPath {
    /// Reads a name as it is in a layer. A slash at its front or end, and parts that say nothing, are passed over.
    pub(super) fn read(name: &[u8], limits: &Limits) -> Result<Self, ImageError> {
        if name.contains(&0) {
            return Err(ImageError::Broken(format!("the name {} has a NUL in it", shown(name))));
        }
        let mut path = Vec::with_capacity(name.len());
        let mut depth = 0;
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => {
                    return Err(ImageError::Broken(format!("the name {} has `..` in it", shown(name))));
                }
                _ if part.len() > LONGEST_PART => {
                    return Err(ImageError::TooLarge(format!("the name {} is too long", shown(part))));
                }
                _ => {}
            }
            depth += 1;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        if path.len() > limits.path_bytes || depth > limits.path_depth {
            return Err(ImageError::TooLarge(format!("the path {} is too long", shown(&path))));
        }
        Ok(Self(path))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The folder and the name in it; nothing for the root.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        split(&self.0)
    }
}

pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &[u8]) -> Result<Vec<u8>, String> {
        EntryPath::read(name, &Limits::default()).map(|path| path.0).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_taken_from_the_root() {
        for (name, path) in [
            (&b"a/b"[..], &b"a/b"[..]),
            (b"./a/b/", b"a/b"),
            (b"/a//./b", b"a/b"),
            (b"///etc/passwd", b"etc/passwd"),
            (b"./", b""),
            (b"", b""),
            (b"\xff/...", b"\xff/..."),
        ] {
            assert_eq!(read(name).unwrap(), path, "{name:?}");
        }
    }

    #[test]
    fn names_that_lead_up_or_on_for_ever_are_refused() {
        let part = vec![b'x'; 256];
        let long = b"abcdefghi/".repeat(450);
        let deep = b"a/".repeat(300);
        for name in [&b".."[..], b"a/../b", b"../a", b"a/..", b"a\0b", &part, &long, &deep] {
            assert!(read(name).is_err(), "{name:?}");
        }
    }
}
