//! The keys that secrets are encrypted with at rest, and the encryption.
//!
//! A key file holds one key a line, 64 hexadecimal digits each; blank lines and lines that begin with `#` are passed
//! over. The first key is the one in use, the others only read what has not been encrypted anew yet (see
//! [`crate::secrets`]). The file is read again before each encryption and for each key that is not known, so that a
//! rotation beside a running server is noticed.
//!
//! AES-256-GCM-SIV of aws-lc-rs, the one TLS provider of this workspace: random nonces are safe, and a nonce that repeats
//! shows no more than that two values are equal. A value is bound to its organisation, store, name and version, so that
//! a row that is moved or put back does not open.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use warren_types::{Error, Secret};
use zeroize::{Zeroize, Zeroizing};

pub(crate) const FILE_NAME: &str = "secrets.key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// Hexadecimal digits of a key's id.
pub(crate) const KEY_ID_DIGITS: usize = 16;
const MAX_FILE_BYTES: u64 = 16 * 1024;

type Key = Secret<[u8; KEY_BYTES]>;

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("the key file {} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the key file {} could not be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the key file {} is not there; put it back, or name the right one with --secrets-key-file", path.display())]
    Missing { path: PathBuf },
    #[error(
        "line {line} of the key file {} is not a key: 64 hexadecimal digits, as `openssl rand -hex 32` prints them",
        path.display()
    )]
    Malformed { path: PathBuf, line: usize },
    #[error("the key file {} holds no key; `openssl rand -hex 32` makes one", path.display())]
    Empty { path: PathBuf },
    #[error("no key in {} has the id {id}, which a secret is encrypted with", path.display())]
    UnknownKey { path: PathBuf, id: String },
    #[error("an encrypted secret does not open: its row was changed by something else than this program")]
    Damaged,
}

/// The one place where a failure of the keys is logged.
impl From<KeyringError> for Error {
    fn from(error: KeyringError) -> Self {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a secret could not be encrypted or decrypted"
        );
        Self::internal("the server could not use the key of its secrets; its log says why")
    }
}

/// What an encrypted value is for; it opens for nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose<'a> {
    pub org: &'a str,
    pub store: &'a str,
    pub name: &'a str,
    pub version: i64,
}

/// The keys of one file.
#[derive(Debug)]
pub(crate) struct Keyring {
    path: PathBuf,
    /// All keys this process has ever seen there: what was read just before a rotation still opens after it.
    seen: Mutex<HashMap<String, Key>>,
}

// === impl Purpose ===

impl Purpose<'_> {
    /// Each part with its length before it, so that no two purposes are the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let version = self.version.to_string();
        let mut bytes = b"warren secret 1".to_vec();
        for part in [self.org, self.store, self.name, &version] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

// === impl Keyring ===

impl Keyring {
    /// Reads the keys of a file that must be there.
    pub(crate) fn open(path: &Path) -> Result<Self, KeyringError> {
        let keyring = Self { path: path.to_owned(), seen: Mutex::default() };
        keyring.read_again()?;
        Ok(keyring)
    }

    /// Makes a file with a new key, unless there is one by now, and reads it.
    pub(crate) fn open_or_make(path: &Path) -> Result<Self, KeyringError> {
        match Self::open(path) {
            Err(KeyringError::Missing { .. }) => {
                // Linked, not renamed: of two servers that start at once both end up with the same key.
                let draft = write_draft(path, &[new_key()]).map_err(|source| write_error(path, source))?;
                let linked = std::fs::hard_link(&draft, path).or_else(|error| match error.kind() {
                    ErrorKind::AlreadyExists => Ok(()),
                    _ => Err(error),
                });
                let removed = std::fs::remove_file(&draft);
                linked
                    .and(removed)
                    .and_then(|()| sync_folder(path))
                    .map_err(|source| write_error(path, source))?;
                Self::open(path)
            }
            opened => opened,
        }
    }

    /// Encrypts a value with the key that is first in the file now: key id, dot, base64 of nonce and ciphertext.
    pub(crate) fn seal(&self, purpose: Purpose<'_>, value: &str) -> Result<String, KeyringError> {
        let id = self.read_again()?;
        let seen = self.seen.lock().expect("nothing panics while it holds this lock");
        let key = seen.get(&id).ok_or(KeyringError::Damaged)?;
        let nonce: [u8; NONCE_LEN] = rand::random();
        // With room for the tag: growing would leave a copy of the value behind.
        let mut buffer = Zeroizing::new(Vec::with_capacity(value.len() + TAG_BYTES));
        buffer.extend_from_slice(value.as_bytes());
        cipher(key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.bytes()),
                &mut *buffer,
            )
            .map_err(|_| KeyringError::Damaged)?;
        Ok(format!("{id}.{}", STANDARD.encode([&nonce[..], &buffer].concat())))
    }

    /// Decrypts what [`Self::seal`] made for the same purpose.
    pub(crate) fn unseal(&self, purpose: Purpose<'_>, sealed: &str) -> Result<Secret<String>, KeyringError> {
        let (id, data) = sealed.split_once('.').ok_or(KeyringError::Damaged)?;
        if !self.knows(id)? {
            return Err(KeyringError::UnknownKey { path: self.path.clone(), id: id.to_owned() });
        }
        let mut data = STANDARD.decode(data).map_err(|_| KeyringError::Damaged)?;
        let (nonce, text) = data.split_at_mut_checked(NONCE_LEN).ok_or(KeyringError::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| KeyringError::Damaged)?;
        let seen = self.seen.lock().expect("nothing panics while it holds this lock");
        let key = seen.get(id).ok_or(KeyringError::Damaged)?;
        let opened = cipher(key).open_in_place(nonce, Aad::from(purpose.bytes()), text);
        let value = opened.ok().and_then(|plain| std::str::from_utf8(plain).ok()).map(str::to_owned);
        data.zeroize();
        value.map(Secret::new).ok_or(KeyringError::Damaged)
    }

    /// Whether a key has that id; looks into the file when it is not one of those seen.
    pub(crate) fn knows(&self, id: &str) -> Result<bool, KeyringError> {
        let known = || self.seen.lock().expect("nothing panics while it holds this lock").contains_key(id);
        if known() {
            return Ok(true);
        }
        self.read_again()?;
        Ok(known())
    }

    /// Takes the keys of the file in; the id of the first.
    fn read_again(&self) -> Result<String, KeyringError> {
        let keys = read_keys(&self.path)?;
        let mut seen = self.seen.lock().expect("nothing panics while it holds this lock");
        let first = keys.first().map(id_of).ok_or_else(|| KeyringError::Empty { path: self.path.clone() })?;
        for key in keys {
            seen.entry(id_of(&key)).or_insert(key);
        }
        Ok(first)
    }
}

/// Keeps other rotations off the file for as long as it lives: two at once could each lose the other's key.
pub(crate) fn lock(path: &Path) -> Result<File, KeyringError> {
    let folder = File::open(folder_of(path)).map_err(|source| write_error(path, source))?;
    folder.lock().map_err(|source| write_error(path, source))?;
    Ok(folder)
}

/// Puts a new key before those of the file.
pub(crate) fn add_key(path: &Path) -> Result<(), KeyringError> {
    let mut keys = vec![new_key()];
    keys.extend(read_keys(path)?);
    replace(path, &keys)
}

/// Leaves only the first key in the file.
pub(crate) fn drop_old_keys(path: &Path) -> Result<(), KeyringError> {
    let mut keys = read_keys(path)?;
    keys.truncate(1);
    replace(path, &keys)
}

fn cipher(key: &Key) -> LessSafeKey {
    LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM_SIV, key.expose()).expect("the key has the length of the cipher"),
    )
}

fn new_key() -> Key {
    Secret::new(rand::random())
}

/// Says which key it is without saying anything about it.
fn id_of(key: &Key) -> String {
    let digest = Sha256::new().chain_update(b"warren secrets key id").chain_update(key.expose()).finalize();
    warren_types::hex(&digest)[..KEY_ID_DIGITS].to_owned()
}

fn read_keys(path: &Path) -> Result<Vec<Key>, KeyringError> {
    let read = |source: io::Error| match source.kind() {
        ErrorKind::NotFound => KeyringError::Missing { path: path.to_owned() },
        _ => KeyringError::Read { path: path.to_owned(), source },
    };
    let mut text = Zeroizing::new(String::new());
    File::open(path).map_err(read)?.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(read)?;
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = from_hex(line);
        keys.push(key.ok_or_else(|| KeyringError::Malformed { path: path.to_owned(), line: number + 1 })?);
    }
    if keys.is_empty() { Err(KeyringError::Empty { path: path.to_owned() }) } else { Ok(keys) }
}

fn from_hex(line: &str) -> Option<Key> {
    let mut key = [0; KEY_BYTES];
    if line.len() != 2 * KEY_BYTES || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(line.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Secret::new(key))
}

/// The whole new file or the whole old one, whatever happens in between.
fn replace(path: &Path, keys: &[Key]) -> Result<(), KeyringError> {
    write_draft(path, keys)
        .and_then(|draft| std::fs::rename(draft, path))
        .and_then(|()| sync_folder(path))
        .map_err(|source| write_error(path, source))
}

/// A file beside `path` with these keys, synced to the drive.
fn write_draft(path: &Path, keys: &[Key]) -> io::Result<PathBuf> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * (2 * KEY_BYTES + 1)));
    for key in keys {
        text.push_str(&Zeroizing::new(warren_types::hex(key.expose())));
        text.push('\n');
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(draft)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_error(path: &Path, source: io::Error) -> KeyringError {
    KeyringError::Write { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PURPOSE: Purpose<'static> = Purpose { org: "o", store: "s", name: "K", version: 1 };

    #[test]
    fn a_value_opens_for_what_it_was_sealed_for_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let keyring = Keyring::open_or_make(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        let sealed = keyring.seal(PURPOSE, "hunter2").unwrap();
        assert!(!sealed.contains("hunter2") && sealed.is_ascii());
        assert_ne!(sealed, keyring.seal(PURPOSE, "hunter2").unwrap());
        assert_eq!(keyring.unseal(PURPOSE, &sealed).unwrap().expose(), "hunter2");
        for other in [
            Purpose { org: "p", ..PURPOSE },
            Purpose { store: "t", ..PURPOSE },
            Purpose { name: "L", ..PURPOSE },
            Purpose { version: 2, ..PURPOSE },
            Purpose { org: "os", store: "", ..PURPOSE },
        ] {
            assert!(matches!(keyring.unseal(other, &sealed), Err(KeyringError::Damaged)), "{other:?}");
        }
        for at in KEY_ID_DIGITS + 1..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let same = STANDARD.decode(&changed[KEY_ID_DIGITS + 1..]).ok()
                == STANDARD.decode(&sealed[KEY_ID_DIGITS + 1..]).ok();
            assert!(same || keyring.unseal(PURPOSE, &changed).is_err(), "changed at {at}");
        }
        for junk in ["", ".", "x", "0123456789abcdef.", &sealed[..20]] {
            assert!(keyring.unseal(PURPOSE, junk).is_err(), "{junk:?}");
        }
    }

    #[test]
    fn a_running_keyring_follows_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let running = Keyring::open_or_make(&path).unwrap();
        let old = running.seal(PURPOSE, "a").unwrap();
        add_key(&path).unwrap();
        let new = running.seal(PURPOSE, "b").unwrap();
        assert_ne!(new[..KEY_ID_DIGITS], old[..KEY_ID_DIGITS], "the first key of the file is the one in use");
        drop_old_keys(&path).unwrap();
        assert_eq!(running.unseal(PURPOSE, &old).unwrap().expose(), "a", "read before, opened after");
        let fresh = Keyring::open(&path).unwrap();
        assert_eq!(fresh.unseal(PURPOSE, &new).unwrap().expose(), "b");
        assert!(matches!(fresh.unseal(PURPOSE, &old), Err(KeyringError::UnknownKey { .. })));
    }

    #[test]
    fn key_files_are_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        assert!(matches!(Keyring::open(&path), Err(KeyringError::Missing { .. })));
        let key = "00".repeat(32);
        std::fs::write(&path, format!("# ours\n\n {key} \n")).unwrap();
        Keyring::open(&path).unwrap();
        for (text, line) in [("x", 1), (&*format!("{key}\n{key}0"), 2), (&*"+1".repeat(32), 1)] {
            std::fs::write(&path, text).unwrap();
            assert!(
                matches!(Keyring::open(&path), Err(KeyringError::Malformed { line: l, .. }) if l == line),
                "{text}"
            );
        }
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(matches!(Keyring::open(&path), Err(KeyringError::Empty { .. })));
        let shown = format!("{:?}", Keyring::open_or_make(&dir.path().join("l")).unwrap());
        assert!(!shown.contains(std::fs::read_to_string(dir.path().join("l")).unwrap().trim()), "{shown}");
    }
}
