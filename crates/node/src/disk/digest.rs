//! What a disk image holds, as one number.
//!
//! BLAKE3 over the image's length and every block that is not all zero, each with its place. It depends on content alone:
//! a hole and a run of zeros are the same, so a copy that lost or gained holes has the digest of its original. Holes are
//! skipped, so an image costs what it holds, not what it could.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, SeekFrom};

/// Granularity of what counts as zero.
const BLOCK: usize = 64 * 1024;
/// Read at once.
const CHUNK: usize = 16 * BLOCK;
/// Told apart from any other use of the hash; changes with the definition.
const DOMAIN: &str = "warren disk image, version 1";
const PREFIX: &str = "blake3:";

/// Reads the whole image and returns its digest: `blake3:` and 64 hex digits. Ends with an error of kind `Interrupted` soon
/// after `cancelled` is set.
pub(crate) fn of_image(image: &File, cancelled: &AtomicBool) -> io::Result<String> {
    let length = image.metadata()?.len();
    let mut hash = blake3::Hasher::new_derive_key(DOMAIN);
    hash.update(&length.to_le_bytes());
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while let Some((start, end)) = next_data(image, position, length)? {
        // Whole blocks, so that it does not matter where the file system draws the line.
        let start = start / BLOCK as u64 * BLOCK as u64;
        let end = end.next_multiple_of(BLOCK as u64).min(length);
        let mut at = start.max(position);
        while at < end {
            if cancelled.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let piece = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            image.read_exact_at(&mut buffer[..piece], at)?;
            add_blocks(&mut hash, &buffer[..piece], at);
            // The disk is attached past the cache: what was read here would only stand in its way.
            let length = std::num::NonZero::new(piece as u64);
            let _ = rustix::fs::fadvise(image, at, length, Advice::DontNeed);
            at += piece as u64;
        }
        position = end;
    }
    Ok(format!("{PREFIX}{}", hash.finalize().to_hex()))
}

/// The digest of a small file, all of it.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    format!("{PREFIX}{}", blake3::hash(bytes).to_hex())
}

fn add_blocks(hash: &mut blake3::Hasher, bytes: &[u8], at: u64) {
    for (block, place) in bytes.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
        if !is_zero(block) {
            hash.update(&place.to_le_bytes());
            hash.update(block);
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    // Sixteen bytes at a time; the compiler makes wider loads of it.
    let (wide, rest) = block.as_chunks::<16>();
    wide.iter().all(|piece| u128::from_ne_bytes(*piece) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// The next run of the file from `position` on that may hold something else than zeros.
pub(super) fn next_data(image: &File, position: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if position >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(image, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(image, SeekFrom::Hole(start))?;
    Ok(Some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(file: &File) -> String {
        of_image(file, &AtomicBool::new(false)).unwrap()
    }

    fn image(length: u64, writes: &[(u64, Vec<u8>)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn every_byte_counts_and_so_do_its_place_and_the_length() {
        let length = 8 * BLOCK as u64 + 100;
        let plain = digest(&image(length, &[(70_000, vec![7; 10])]));
        let same = digest(&image(length, &[(70_000, vec![7; 10])]));
        assert_eq!(plain, same);
        for other in [
            image(length, &[]),
            image(length + 1, &[(70_000, vec![7; 10])]),
            image(length, &[(70_001, vec![7; 10])]),
            image(length, &[(70_000 + BLOCK as u64, vec![7; 10])]),
            image(length, &[(70_000, vec![7; 9])]),
            image(length, &[(70_000, vec![7; 10]), (length - 1, vec![1])]),
        ] {
            assert_ne!(digest(&other), plain);
        }
    }

    #[test]
    fn a_sparse_image_costs_what_it_holds() {
        let begun = std::time::Instant::now();
        digest(&image(256 << 30, &[(200 << 30, vec![1; 4096])]));
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "it read the holes");
    }

    #[test]
    fn it_can_be_called_off() {
        let file = image(BLOCK as u64, &[(0, vec![1; 10])]);
        let error = of_image(&file, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn holes_and_zeros_are_the_same(
            blocks in 1u64..24,
            tail in 0u64..5000,
            writes in proptest::collection::vec((0u64..1_600_000, 1usize..100_000, any::<u8>()), 0..6),
        ) {
            let length = blocks * BLOCK as u64 + tail;
            let fitting = |(at, size, byte): (u64, usize, u8)| {
                let at = at % length;
                (at, vec![byte; size.min(usize::try_from(length - at).unwrap())])
            };
            let writes: Vec<_> = writes.into_iter().map(fitting).collect();
            let sparse = image(length, &writes);
            let mut full = vec![(0, vec![0; usize::try_from(length).unwrap()])];
            full.extend(writes);
            prop_assert_eq!(digest(&sparse), digest(&image(length, &full)));
        }
    }
}
