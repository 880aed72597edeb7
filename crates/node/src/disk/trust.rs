//! The gateway's certificate authority, in the template of this installation.
//!
//! Programs that trust what the system trusts (OpenSSL's folder and bundle; with them Python, git, curl, cargo; and Java's
//! store, which Debian makes of the same files when Java is installed) then take what the gateway answers with. The image
//! is a copy under a name of its own, so that one without it, or with another's, is never taken for it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::volume::run_command;
use crate::config::StartError;

/// Where the contract has it; `update-ca-certificates` takes it from there too.
pub(crate) const CERTIFICATE: &str = "usr/local/share/ca-certificates/opensandbox-proxy.crt";
pub(crate) const FOLDER: &str = "etc/ssl/certs";
pub(crate) const LINK: &str = "opensandbox-proxy.pem";
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Digest of the template `digest` with that certificate in it.
pub(super) fn digest_with(digest: &str, pem: &str) -> String {
    let digest = Sha256::new().chain_update(digest).chain_update([0]).chain_update(pem).finalize();
    warren_types::hex(&digest)
}

/// Puts the certificate of the authority `name` into an image that nobody uses yet. `mount_at` is an empty folder.
pub(super) async fn install(image: &Path, mount_at: &Path, name: &str, pem: &str) -> Result<(), StartError> {
    let what = "put the gateway's certificate into the template".to_owned();
    let failed = |source| StartError::Command { what: what.clone(), source };
    let args = ["-t", "ext4", "-o", "loop,rw,nodev,nosuid,noexec"].map(std::ffi::OsStr::new);
    let paths = [image.as_os_str(), mount_at.as_os_str()];
    run_command("mount", "mount", &[&args[..], &paths[..]].concat()).await.map_err(failed)?;
    let (root, authority, certificate) = (mount_at.to_owned(), name.to_owned(), pem.to_owned());
    let written = tokio::task::spawn_blocking(move || write(&root, &authority, &certificate)).await;
    super::unmount(mount_at).await;
    written.map_err(io::Error::other).flatten().map_err(|source| StartError::Folder {
        what: "the template",
        path: image.into(),
        source,
    })
}

fn write(root: &Path, name: &str, pem: &str) -> io::Result<()> {
    let certificate = root.join(CERTIFICATE);
    fs::create_dir_all(certificate.parent().unwrap_or(root))?;
    fs::write(&certificate, pem)?;
    let folder = root.join(FOLDER);
    if !folder.is_dir() {
        // An image without the system's certificates trusts nobody that way.
        return Ok(());
    }
    symlink(PathBuf::from("/").join(CERTIFICATE), folder.join(LINK))?;
    symlink(LINK, folder.join(format!("{:08x}.0", subject_hash(name))))?;
    let bundle = root.join(BUNDLE);
    if bundle.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
        let mut file = OpenOptions::new().append(true).open(bundle)?;
        file.write_all(pem.as_bytes())?;
    }
    Ok(())
}

/// Under what number OpenSSL looks for an authority whose whole name is that common name: the first four bytes, the lowest
/// first, of the SHA-1 of its canonical form (`X509_NAME_hash`): a set of a sequence of the attribute's identifier and
/// its text in lower case.
pub(crate) fn subject_hash(name: &str) -> u32 {
    const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let wrap = |tag: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).ok().filter(|length| *length < 128);
        let length = length.expect("the name of an authority is short");
        [&[tag, length], content].concat()
    };
    let text = wrap(0x0c, name.to_ascii_lowercase().as_bytes());
    let canonical = wrap(0x31, &wrap(0x30, &[&COMMON_NAME[..], &text].concat()));
    let digest = Sha1::digest(canonical);
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_openssls() {
        // openssl req -x509 -newkey … -subj '/CN=OpenSandbox Proxy CA' | openssl x509 -noout -hash
        assert_eq!(format!("{:08x}", subject_hash("OpenSandbox Proxy CA")), "62c7c557");
    }

    #[test]
    fn another_authority_makes_another_template() {
        assert_ne!(digest_with("a", "b"), digest_with("a", "c"));
        assert_ne!(digest_with("a", "b"), digest_with("b", "b"));
    }
}
