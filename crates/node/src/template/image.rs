//! A tree into one read-only ext4 image.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::build::command;
use super::contained::Contained;
use super::{TemplateError, blocking};

const DEADLINE: Duration = Duration::from_secs(10 * 60);
const BLOCK: u64 = 4096;
const INODE: u64 = 256;
const SPARE_INODES: u64 = 256;
const SPARE_BYTES: u64 = 16 * 1024 * 1024;

/// What a tree takes in an image.
#[derive(Default)]
struct Content {
    inodes: u64,
    blocks: u64,
}

impl Content {
    fn image_bytes(&self) -> u64 {
        let data = self.blocks * BLOCK + (self.inodes + SPARE_INODES) * INODE;
        // Bitmaps, group descriptors, extent blocks and superblock copies stay under two in a hundred.
        (data + data / 50 + SPARE_BYTES).next_multiple_of(1024 * 1024)
    }
}

/// Writes the image: no journal and no reserve, for nobody ever writes to it.
pub(super) async fn pack(tree: &Path, image: &Path) -> Result<(), TemplateError> {
    let root = tree.to_owned();
    let content = blocking(move || measure(&root)).await?;
    let create = || -> io::Result<()> {
        let file = File::options().write(true).create_new(true).open(image)?;
        file.set_len(content.image_bytes())
    };
    create().map_err(TemplateError::io("create the image", image))?;
    Contained::new("mke2fs", DEADLINE)
        .args(["-q", "-F", "-t", "ext4", "-L", "warren-base", "-O", "^has_journal", "-m", "0", "-b", "4096"])
        .args(["-E", "lazy_itable_init=1,root_owner=0:0", "-I", &INODE.to_string()])
        .args(["-N", &(content.inodes + SPARE_INODES).to_string()])
        .args(["-d".as_ref(), tree.as_os_str(), image.as_os_str()])
        .run()
        .await
        .map(drop)
        .map_err(command("write the base template's image"))
}

fn measure(tree: &Path) -> Result<Content, TemplateError> {
    let mut content = Content { inodes: 1, blocks: 1 };
    let mut directories: Vec<PathBuf> = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        let failed = |source| TemplateError::io("measure", &directory)(source);
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            content.inodes += 1;
            if metadata.is_dir() {
                // Names come to a third of a block here on average; a directory never has less than one block.
                content.blocks += metadata.size().div_ceil(BLOCK).max(1);
                directories.push(entry.path());
            } else if metadata.is_file() || metadata.size() >= 60 {
                content.blocks += metadata.size().div_ceil(BLOCK);
            }
        }
    }
    Ok(content)
}

/// Takes the write permission away, makes it durable, and returns digest and size.
pub(super) fn seal(image: &Path) -> Result<(String, u64), TemplateError> {
    let work = || -> io::Result<(String, u64)> {
        std::fs::set_permissions(image, Permissions::from_mode(0o444))?;
        let mut file = File::open(image)?;
        file.sync_all()?;
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; 1024 * 1024];
        let mut size = 0;
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok((warren_types::hex(&hasher.finalize()), size)),
                count => {
                    hasher.update(&chunk[..count]);
                    size += count as u64;
                }
            }
        }
    };
    work().map_err(TemplateError::io("seal the image", image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_tree_fits_into_its_image() {
        if !crate::template::tests::is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("many")).unwrap();
        for number in 0..3000 {
            std::fs::write(tree.join(format!("many/a-rather-long-file-name-{number}")), [7; 5000]).unwrap();
        }
        std::fs::write(tree.join("large"), vec![9; 40_000_000]).unwrap();
        std::os::unix::fs::symlink("x".repeat(200), tree.join("link")).unwrap();
        let image = directory.path().join("image");
        pack(&tree, &image).await.unwrap();
        let check =
            Contained::new("e2fsck", DEADLINE).args(["-f".as_ref(), "-n".as_ref(), image.as_os_str()]);
        check.run().await.unwrap();
        let (digest, size) = seal(&image).unwrap();
        assert_eq!(digest.len(), 64);
        assert_eq!(size, std::fs::metadata(&image).unwrap().len());
        assert!(std::fs::metadata(&image).unwrap().blocks() * 512 <= size);
    }
}
