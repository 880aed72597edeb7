//! The guest agent program: carried inside this one, written out once for the launcher to start.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

static PROGRAM: &[u8] = include_bytes!(env!("WARREN_GUEST_AGENT"));

/// Writes the agent below `folder`, under its digest, and returns its path. Agents of other versions stay: sandboxes
/// may be running them.
pub(crate) fn ensure(folder: &Path) -> std::io::Result<PathBuf> {
    let digest = Sha256::digest(PROGRAM);
    let name = warren_types::hex(&digest[..8]);
    let path = folder.join(name).join("warren-agent");
    if fs::metadata(&path).is_ok_and(|meta| meta.len() == PROGRAM.len() as u64) {
        return Ok(path);
    }
    let parent = path.parent().expect("the path was made of two parts");
    fs::create_dir_all(parent)?;
    let unfinished = parent.join("unfinished");
    let mut file = fs::File::create(&unfinished)?;
    file.write_all(PROGRAM)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&unfinished, &path)?;
    Ok(path)
}
