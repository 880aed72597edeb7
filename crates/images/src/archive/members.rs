//! The members of an archive, as files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hasher};
use crate::error::shown;
use crate::tar::{Kind, Reader};
use crate::{ImageError, Limits, decode};

const PIECE: usize = 512 << 10;
/// A layer has three members where Docker writes it, and an image of several platforms has layers for each.
const MOST: usize = 10_000;
const LONGEST_NAME: usize = 1024;
/// Links to links.
const MOST_LINKS: usize = 8;

/// What an archive holds, by name.
#[derive(Default)]
pub(super) struct Members {
    files: HashMap<Vec<u8>, Member>,
    /// Docker once wrote a layer that several images have only once.
    links: HashMap<Vec<u8>, Vec<u8>>,
}

pub(super) struct Member {
    pub(super) file: PathBuf,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

// === impl Members ===

impl Members {
    pub(super) fn read(stream: impl Read, folder: &Path, limits: &Limits) -> Result<Self, ImageError> {
        let stream = decode::open(stream)?.take(limits.stored_bytes.saturating_add(1));
        let mut reader = Reader::new(BufReader::with_capacity(PIECE, stream));
        let mut members = Self::default();
        let mut sum = 0_u64;
        while let Some(entry) = reader.next()? {
            let name = clean(&entry.name);
            if members.files.len() + members.links.len() >= MOST {
                return Err(ImageError::TooLarge(format!("the archive has more than {MOST} members")));
            }
            if name.len() > LONGEST_NAME || entry.link.len() > LONGEST_NAME {
                return Err(ImageError::TooLarge(format!("the name {} is too long", shown(&name))));
            }
            match entry.kind {
                Kind::File if entry.pieces.is_none() => {
                    if entry.size > limits.blob_bytes {
                        let (size, most) = (entry.size, limits.blob_bytes);
                        return Err(ImageError::TooLarge(format!(
                            "{} has {size} bytes, {most} are taken",
                            shown(&name)
                        )));
                    }
                    sum = sum.saturating_add(entry.size);
                    if sum > limits.stored_bytes {
                        let most = limits.stored_bytes;
                        return Err(ImageError::TooLarge(format!("its files have more than {most} bytes")));
                    }
                    let file = folder.join(format!("member-{}", members.files.len()));
                    let digest = save(&mut reader, &file)?;
                    if members.files.insert(name.clone(), Member { file, size: entry.size, digest }).is_some()
                    {
                        return Err(ImageError::Broken(format!("{} is twice in the archive", shown(&name))));
                    }
                }
                Kind::Symlink => {
                    members.links.insert(name.clone(), beside(&name, &entry.link));
                }
                Kind::HardLink => {
                    members.links.insert(name, clean(&entry.link));
                }
                _ => {}
            }
        }
        reader.drain()?;
        Ok(members)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Member> {
        let mut name = clean(name.as_bytes());
        for _ in 0..MOST_LINKS {
            match self.links.get(&name) {
                Some(target) if !self.files.contains_key(&name) => name.clone_from(target),
                _ => break,
            }
        }
        self.files.get(&name)
    }

    /// A blob of an OCI layout. It must be what its name says.
    pub(super) fn blob(&self, digest: Digest) -> Result<&Member, ImageError> {
        let name = format!("blobs/sha256/{}", digest.hex());
        let member = self.find(&name);
        let member = member.ok_or_else(|| ImageError::Broken(format!("the archive has no {digest}")))?;
        if member.digest != digest {
            return Err(ImageError::Broken(format!(
                "the archive has something else than {digest} under its name"
            )));
        }
        Ok(member)
    }
}

impl Member {
    /// All of it, where it is no larger.
    pub(super) fn read(&self, what: &str, most: u64) -> Result<Vec<u8>, ImageError> {
        if self.size > most {
            return Err(ImageError::TooLarge(format!("{what} has {} bytes, {most} are taken", self.size)));
        }
        std::fs::read(&self.file).map_err(|error| ImageError::file("read", &self.file, error))
    }
}

fn save(reader: &mut Reader<impl BufRead>, path: &Path) -> Result<Digest, ImageError> {
    let failed = |error| ImageError::file("write", path, error);
    let mut file = File::create_new(path).map_err(failed)?;
    let mut hasher = Hasher::new();
    loop {
        let piece = reader.data()?;
        if piece.is_empty() {
            return Ok(hasher.finish());
        }
        hasher.update(piece);
        file.write_all(piece).map_err(failed)?;
        let length = piece.len();
        reader.consume(length);
    }
}

/// A name without what says nothing. It names nothing but members, so `..` can lead nowhere else.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    clean(&[name, b"/../", target].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_what_says_nothing() {
        assert_eq!(clean(b"./a//b/"), b"a/b");
        assert_eq!(clean(b"../../a"), b"a");
        assert_eq!(beside(b"one/layer.tar", b"../two/layer.tar"), b"two/layer.tar");
    }
}
