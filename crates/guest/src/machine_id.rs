//! `/etc/machine-id`: each sandbox has its own for as long as it is there. A disk that was copied has that of another sandbox, so
//! a container notes whose it is; a virtual machine is told.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use warren_types::SandboxId;

/// Makes one, unless the one there is was made for this sandbox. `owner` is the file that says for whom it was.
pub(crate) fn settle(path: &Path, owner: &Path, sandbox: &SandboxId) -> io::Result<()> {
    let is_there = fs::metadata(path).is_ok_and(|meta| meta.len() > 0);
    if is_there && fs::read(owner).is_ok_and(|of| of == sandbox.as_str().as_bytes()) {
        return Ok(());
    }
    renew(path)?;
    // After it: one that is cut off here is renewed again.
    if let Some(folder) = owner.parent() {
        fs::create_dir_all(folder)?;
    }
    write(owner, sandbox.as_str(), 0o644)
}

/// Replaces it by a new one.
pub(crate) fn renew(path: &Path) -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    // The bits that make it a version 4 UUID, as systemd's are.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let id = warren_types::hex(&bytes);
    write(path, &format!("{id}\n"), 0o444)?;
    Ok(id)
}

/// In place: an id is as long as the one before, and what is emptied first the file system writes out at once. What is there
/// instead of a file nobody waits for.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(mode);
    open.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let mut file = match open.open(path) {
        Ok(file) => file,
        Err(_) if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) => {
            fs::remove_file(path)?;
            open.open(path)?
        }
        Err(error) => return Err(error),
    };
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_for_each_sandbox_and_waits_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, owner) = (folder.path().join("machine-id"), folder.path().join("var/machine-of"));
        let read = |sandbox: &str| {
            settle(&path, &owner, &sandbox.parse().unwrap()).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        fs::write(&path, "").unwrap();
        let first = read("sb-0a1b2c3d");
        assert!(
            first.len() == 33 && first.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{first:?}"
        );
        assert_eq!(read("sb-0a1b2c3d"), first);
        let fork = read("sb-0a1b2c3e");
        assert_ne!(fork, first);
        fs::write(&path, "").unwrap();
        assert_ne!(read("sb-0a1b2c3e"), fork, "an empty one is none");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert_eq!(read("sb-0a1b2c3d").len(), 33, "a pipe that nobody reads");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert_eq!(read("sb-0a1b2c3e").len(), 33);
        assert!(!folder.path().join("elsewhere").exists());
    }
}
