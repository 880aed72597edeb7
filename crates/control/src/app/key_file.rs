//! Keys of this server, in files of its data directory: made at the first start, readable by nobody else.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(crate) const KEY_BYTES: usize = 32;

/// Reads the key `name` from `data_dir`, or makes one when there is none.
pub(crate) fn open(data_dir: &Path, name: &str) -> io::Result<[u8; KEY_BYTES]> {
    let path = data_dir.join(name);
    match File::open(&path) {
        Ok(mut file) => {
            let mut key = [0; KEY_BYTES];
            file.read_exact(&mut key)?;
            Ok(key)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key: [u8; KEY_BYTES] = rand::random();
            // Written beside and linked into place: a crash leaves a whole key or none, and of two
            // servers that start at once both end up with the same.
            let draft = data_dir.join(format!("{name}.{}", std::process::id()));
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&key)?;
            file.sync_all()?;
            let linked = std::fs::hard_link(&draft, &path);
            std::fs::remove_file(&draft)?;
            match linked {
                Ok(()) => Ok(key),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => open(data_dir, name),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = open(dir.path(), "some.key").unwrap();
        assert_eq!(open(dir.path(), "some.key").unwrap(), key);
        assert_ne!(open(dir.path(), "other.key").unwrap(), key);
        let mode = std::fs::metadata(dir.path().join("some.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no draft is left");
    }
}
