//! Secrets of a store: list, set, delete.

use std::sync::Arc;

use warren_api::secrets::{SecretEntry, SecretSet, SecretStored};
use warren_node_api::Place;
use warren_types::Error;

use super::request::{SecretName, SetSecret, word_of};
use super::{secret_not_found, store_not_found};
use crate::app::App;
use crate::app::access::Told;
use crate::app::audit::Kind;
use crate::app::auth::Caller;
use crate::keyring::{KeyringError, Purpose};
use crate::store::StoreError;
use crate::store::secrets::change::{SecretChange, SecretChanged};
use crate::store::secrets::{SecretRow, SecretStoreId};

/// Secrets of a store.
const MAX_SECRETS: u32 = 100;
/// Bytes of all encrypted values of a store. With every layer a sandbox may have, its node takes them in one call.
const MAX_STORE_BYTES: u64 = 384 * 1024;
/// Where a secret is put in that says nothing else.
const DEFAULT_PLACES: [Place; 1] = [Place::Header];

/// Why a value could not be written.
enum SealError {
    Store(StoreError),
    Keyring(KeyringError),
}

impl From<StoreError> for SealError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Store(error) => error.into(),
            SealError::Keyring(error) => error.into(),
        }
    }
}

impl App {
    pub(crate) async fn list_secrets(
        &self,
        caller: &Caller,
        store: &SecretStoreId,
    ) -> Result<Vec<SecretEntry>, Error> {
        let store = self.own_secret_store(caller, store).await?;
        Ok(self.store.list_secrets(&store.id).await?.into_iter().map(view).collect())
    }

    /// Writes a secret; sandboxes that have it have its new value, behind the same token.
    pub(crate) async fn set_secret(
        self: &Arc<Self>,
        caller: &Caller,
        store: &SecretStoreId,
        name: &str,
        body: SecretSet,
    ) -> Result<SecretStored, Error> {
        let store = self.own_secret_store(caller, store).await?;
        let (name, set) = (name.parse::<SecretName>()?, SetSecret::try_from(body)?);
        let app = Arc::clone(self);
        let note = caller.note(Kind::Secret).with("action", "set").with("store", store.id.as_str());
        self.change(note.with("name", name.as_str()), async move {
            let change = SecretChange {
                store: &store.id,
                name: name.as_str(),
                allowed_hosts: set.allowed_hosts.as_deref(),
                places: set.places.as_deref(),
                default_places: &DEFAULT_PLACES,
                limit: MAX_SECRETS,
                limit_bytes: MAX_STORE_BYTES,
            };
            let seal = |version| {
                let purpose =
                    Purpose { org: store.org.as_str(), store: store.id.as_str(), name: name.as_str(), version };
                app.keyring.seal(purpose, set.value.expose()).map_err(SealError::Keyring)
            };
            let secret = match app.store.put_secret(&change, seal).await? {
                SecretChanged::Yes(secret) => secret,
                SecretChanged::Absent => return Err(store_not_found()),
                SecretChanged::TooMany => {
                    return Err(Error::invalid(format!(
                        "a store may have {MAX_SECRETS} secrets; delete one, or use a second store"
                    )));
                }
                SecretChanged::TooLarge => {
                    return Err(Error::invalid(format!(
                        "the secrets of a store may have {MAX_STORE_BYTES} bytes in all once encrypted, a third more \
                         than they have; use a second store"
                    )));
                }
            };
            app.access_changes.count();
            let holders = app.store.list_with_secret(&secret).await?;
            let pushed = app.push_access(&holders, Told::SECRETS).await;
            Ok(SecretStored {
                name: name.as_str().to_owned(),
                status: "set".to_owned(),
                refreshed: pushed.done.to_string(),
                pending: (pushed.pending > 0).then(|| pushed.pending.to_string()),
            })
        })
        .await
    }

    /// Deletes a secret; what stood for it in sandboxes stands for nothing from then on.
    pub(crate) async fn delete_secret(
        self: &Arc<Self>,
        caller: &Caller,
        store: &SecretStoreId,
        name: &str,
    ) -> Result<(), Error> {
        let store = self.own_secret_store(caller, store).await?;
        let (app, name) = (Arc::clone(self), name.to_owned());
        let note = caller.note(Kind::Secret).with("action", "delete").with("store", store.id.as_str());
        self.change(note.with("name", name.as_str()), async move {
            let holders = app.store.delete_secret(&store.id, &name).await?.ok_or_else(secret_not_found)?;
            app.access_changes.count();
            let holders: Vec<_> = holders.into_iter().map(|id| (store.org.clone(), id)).collect();
            app.push_access(&holders, Told::SECRETS).await;
            Ok(())
        })
        .await
    }
}

fn view(row: SecretRow) -> SecretEntry {
    SecretEntry {
        id: row.id,
        store_id: row.store.to_string(),
        name: row.name,
        allowed_hosts: row.allowed_hosts.iter().map(ToString::to_string).collect(),
        places: row.places.iter().map(|place| word_of(*place).to_owned()).collect(),
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}
