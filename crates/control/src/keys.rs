//! API keys, for the command line. Works on the server's own store, also while a server runs: what is made or revoked
//! here counts from the next request on.

use std::path::Path;

use jiff::Timestamp;
use warren_types::{OrgId, Secret};

use crate::app::audit::{Kind, Note, Recorder, RecorderError, Who};
use crate::app::auth::{generate_key, hash_key};
use crate::store::keys::KeyRow;
use crate::store::{Store, StoreError};

/// What of a key is kept in readable form.
const PREFIX_CHARS: usize = 8;
const MAX_NAME_BYTES: usize = 128;
const ID_BYTES: usize = 36;

/// The keys of one data directory.
#[derive(Debug)]
pub struct Keys {
    store: Store,
    recorder: Recorder,
}

/// A key, without what makes it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub id: String,
    pub org_id: OrgId,
    pub org_name: String,
    /// The first characters of the key.
    pub prefix: String,
    pub label: Option<String>,
    pub created_at: Timestamp,
    /// To within a minute.
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what was done could not be recorded")]
    Record(#[from] RecorderError),
    #[error("{what} must be 1 to {MAX_NAME_BYTES} bytes without control characters")]
    BadName { what: &'static str },
    #[error("no key has the id or prefix {0:?}; `keys list` shows them")]
    NotFound(String),
    #[error("{count} keys start with {prefix:?}; give the id of the one you mean, as `keys list` shows it")]
    Ambiguous { prefix: String, count: usize },
}

/// Opens the keys kept in `data_dir`, making the store when there is none yet.
pub async fn open(data_dir: impl AsRef<Path>) -> Result<Keys, KeysError> {
    let store = Store::open(data_dir.as_ref()).await?;
    let recorder = Recorder::open(data_dir.as_ref(), &store).await?;
    Ok(Keys { store, recorder })
}

impl Keys {
    /// Makes a key for the organisation of that name, and the organisation with its first key. The key is shown this
    /// once: only its hash is kept.
    pub async fn create(
        &self,
        org_name: &str,
        label: Option<&str>,
    ) -> Result<(Secret<String>, KeyInfo), KeysError> {
        check_name("the name of the organisation", org_name)?;
        if let Some(label) = label {
            check_name("the label", label)?;
        }
        let key = Secret::new(generate_key());
        let prefix: String = key.expose().chars().take(PREFIX_CHARS).collect();
        let row = self
            .store
            .insert_key(org_name, label, &hash_key(key.expose()), &prefix, self.recorder.seal())
            .await?;
        self.recorder.record(&self.store, &row.org_id, |who| note_of(who, &row, "create")).await?;
        Ok((key, row.into()))
    }

    /// All keys, revoked ones included, oldest first.
    pub async fn list(&self) -> Result<Vec<KeyInfo>, KeysError> {
        Ok(self.store.list_keys().await?.into_iter().map(KeyInfo::from).collect())
    }

    /// Revokes the key with that id, that prefix, or whose id starts like that; a whole key works too. It is refused
    /// from the next request on.
    pub async fn revoke(&self, id_or_prefix: &str) -> Result<KeyInfo, KeysError> {
        let means = |key: &KeyRow| {
            let prefix = id_or_prefix.get(..PREFIX_CHARS).unwrap_or(id_or_prefix);
            match id_or_prefix.len() {
                0 => false,
                ID_BYTES => key.id == id_or_prefix,
                _ if id_or_prefix.starts_with("osb_") => key.prefix == prefix,
                _ => key.id.starts_with(id_or_prefix),
            }
        };
        let keys = self.store.list_keys().await?;
        let found: Vec<&KeyRow> = keys.iter().filter(|key| means(key)).collect();
        match found[..] {
            [] => Err(KeysError::NotFound(id_or_prefix.get(..ID_BYTES).unwrap_or(id_or_prefix).to_owned())),
            [key] => {
                let row = self.store.revoke_key(&key.id).await?;
                self.recorder.record(&self.store, &row.org_id, |who| note_of(who, &row, "revoke")).await?;
                Ok(row.into())
            }
            _ => Err(KeysError::Ambiguous {
                prefix: id_or_prefix.chars().take(PREFIX_CHARS).collect(),
                count: found.len(),
            }),
        }
    }
}

/// Who can do this has the server's own files; there is no name to tell.
fn note_of(who: &Who, row: &KeyRow, action: &str) -> Note {
    let note = who.note(Kind::ApiKey).with("action", action).with("key", row.id.as_str());
    note.with("prefix", row.prefix.as_str()).with("label", row.label.clone()).with("outcome", "done")
}

impl From<KeyRow> for KeyInfo {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            org_id: row.org_id,
            org_name: row.org_name,
            prefix: row.prefix,
            label: row.label,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
        }
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), KeysError> {
    if name.trim().is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
        return Err(KeysError::BadName { what });
    }
    Ok(())
}
