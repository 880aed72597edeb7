//! The keys of secrets, for the command line. Works on the server's own files, also while a server runs.

use std::path::{Path, PathBuf};

use crate::app::access::prepare::purpose;
use crate::keyring::{self, Keyring, KeyringError};
use crate::store::{Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

/// Where the keys of secrets are: the file that is named, or the one in the data directory.
pub(crate) fn key_file(data_dir: &Path, named: Option<&Path>) -> PathBuf {
    named.map_or_else(|| data_dir.join(keyring::FILE_NAME), Path::to_owned)
}

/// Makes a new key and encrypts every secret with it; how many there were.
///
/// ```text
///   new key before the old ones ─▶ all secrets encrypted anew, in one transaction ─▶ old keys removed
/// ```
///
/// Cut off at any point, the file has every key that a secret needs, and another run ends it well. A server that runs
/// reads the file again before it encrypts and when it meets a key it does not know; it encrypts inside of a
/// transaction, which comes before ours and is encrypted anew, or after it and uses the new key.
pub async fn rotate_key(data_dir: &Path, named: Option<&Path>) -> Result<u64, RotateError> {
    let path = key_file(data_dir, named);
    // Before the store: a directory that is none must not become one.
    Keyring::open(&path)?;
    let _alone = keyring::lock(&path)?;
    let store = Store::open(data_dir).await?;
    keyring::add_key(&path)?;
    let keyring = Keyring::open(&path)?;
    let count = store
        .reseal_secrets(|secret| {
            let value = keyring.unseal(purpose(secret), &secret.sealed)?;
            Ok::<_, RotateError>(keyring.seal(purpose(secret), value.expose())?)
        })
        .await?;
    keyring::drop_old_keys(&path)?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::seal::Seal;
    use crate::keyring::Purpose;
    use crate::store::secrets::SecretStoreId;
    use crate::store::secrets::change::{SecretChange, SecretChanged, StoreInserted};

    async fn put(store: &Store, keyring: &Keyring, id: &SecretStoreId, org: &str, name: &str, value: &str) {
        let change = SecretChange {
            store: id,
            name,
            allowed_hosts: None,
            places: None,
            default_places: &[],
            limit: 10,
            limit_bytes: 10_000,
        };
        let seal = |version| {
            let purpose = Purpose { org, store: id.as_str(), name, version };
            keyring.seal(purpose, value).map_err(RotateError::from)
        };
        assert!(matches!(store.put_secret(&change, seal).await.unwrap(), SecretChanged::Yes(_)));
    }

    /// A store with two secrets, as a server would have made it.
    async fn some(dir: &Path) -> (Store, Keyring, SecretStoreId, String) {
        let keyring = Keyring::open_or_make(&dir.join(keyring::FILE_NAME)).unwrap();
        let store = Store::open(dir).await.unwrap();
        let org =
            store.insert_key("acme", None, "h", "osb_", &Seal::open(dir).unwrap()).await.unwrap().org_id;
        let StoreInserted::Yes(row) = store.insert_secret_store(&org, "s", &[], 9).await.unwrap() else {
            panic!("it is the first")
        };
        put(&store, &keyring, &row.id, org.as_str(), "A", "one").await;
        put(&store, &keyring, &row.id, org.as_str(), "B", "two").await;
        (store, keyring, row.id, org.as_str().to_owned())
    }

    async fn values(store: &Store, keyring: &Keyring, id: &SecretStoreId) -> Vec<String> {
        let secrets = store.list_sealed_secrets(id).await.unwrap();
        let open = |secret| keyring.unseal(purpose(secret), &secret.sealed).unwrap().expose().clone();
        secrets.iter().map(open).collect()
    }

    #[tokio::test]
    async fn a_rotation_leaves_one_key_and_every_secret_readable() {
        let dir = tempfile::tempdir().unwrap();
        let (store, running, id, org) = some(dir.path()).await;
        let path = dir.path().join(keyring::FILE_NAME);
        let before = std::fs::read_to_string(&path).unwrap();
        assert_eq!(rotate_key(dir.path(), None).await.unwrap(), 2);
        let after = std::fs::read_to_string(&path).unwrap();
        assert_eq!(after.lines().count(), 1);
        assert_ne!(before, after);
        // The server that ran all the while, and one that starts now.
        assert_eq!(values(&store, &running, &id).await, ["one", "two"]);
        put(&store, &running, &id, &org, "A", "three").await;
        assert_eq!(values(&store, &Keyring::open(&path).unwrap(), &id).await, ["three", "two"]);
        assert_eq!(store.list_secret_keys(keyring::KEY_ID_DIGITS).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_rotation_that_is_cut_off_loses_nothing_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, id, _) = some(dir.path()).await;
        let path = dir.path().join(keyring::FILE_NAME);
        // After the first step.
        keyring::add_key(&path).unwrap();
        assert_eq!(values(&store, &Keyring::open(&path).unwrap(), &id).await, ["one", "two"]);
        // Within the second: some are encrypted anew, then it fails and none is.
        let keyring = Keyring::open(&path).unwrap();
        let mut left = 1;
        let cut = store.reseal_secrets(|secret| {
            left -= 1;
            if left < 0 {
                return Err(RotateError::Keyring(KeyringError::Damaged));
            }
            let value = keyring.unseal(purpose(secret), &secret.sealed)?;
            Ok(keyring.seal(purpose(secret), value.expose())?)
        });
        assert!(cut.await.is_err());
        assert_eq!(values(&store, &Keyring::open(&path).unwrap(), &id).await, ["one", "two"]);
        assert_eq!(rotate_key(dir.path(), None).await.unwrap(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert_eq!(values(&store, &Keyring::open(&path).unwrap(), &id).await, ["one", "two"]);
    }

    #[tokio::test]
    async fn a_directory_without_keys_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(rotate_key(&dir.path().join("typo"), None).await.is_err());
        assert!(!dir.path().join("typo").exists());
    }
}
