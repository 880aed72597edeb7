//! Secret stores: make, list, read, change, delete.

use std::sync::Arc;

use warren_api::secrets::{SecretStore, SecretStoreChange, SecretStoreCreate};
use warren_types::{Error, SandboxId};

use super::request::MAX_NAME_BYTES;
use super::store_not_found;
use crate::app::App;
use crate::app::access::Told;
use crate::app::access::policy::keep_list;
use crate::app::access::request::hosts;
use crate::app::audit::Kind;
use crate::app::auth::Caller;
use crate::store::secrets::change::{StoreChanged, StoreInserted};
use crate::store::secrets::{SecretStoreId, SecretStoreRow};

/// Stores of an organisation.
const MAX_STORES: u32 = 100;

impl App {
    pub(crate) async fn create_secret_store(
        &self,
        caller: &Caller,
        body: SecretStoreCreate,
    ) -> Result<SecretStore, Error> {
        let name = checked_name(body.name.unwrap_or_default())?;
        let list = hosts("egressAllowlist", body.egress_allowlist.unwrap_or_default())?;
        match self.store.insert_secret_store(caller.org(), &name, &list, MAX_STORES).await? {
            StoreInserted::Yes(row) => {
                let note =
                    caller.note(Kind::SecretStore).with("action", "create").with("store", row.id.as_str());
                self.audit.note(note.with("name", row.name.as_str()).with("outcome", "done")).await?;
                Ok(view(*row))
            }
            StoreInserted::Taken => Err(taken()),
            StoreInserted::LimitReached => Err(Error::invalid(format!(
                "an organisation may have {MAX_STORES} secret stores; delete one that is not used"
            ))),
        }
    }

    pub(crate) async fn list_secret_stores(&self, caller: &Caller) -> Result<Vec<SecretStore>, Error> {
        Ok(self.store.list_secret_stores(caller.org()).await?.into_iter().map(view).collect())
    }

    pub(crate) async fn get_secret_store(
        &self,
        caller: &Caller,
        id: &SecretStoreId,
    ) -> Result<SecretStore, Error> {
        self.own_secret_store(caller, id).await.map(view)
    }

    /// Changes a store, and with its list what its sandboxes may reach.
    pub(crate) async fn change_secret_store(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SecretStoreId,
        body: SecretStoreChange,
    ) -> Result<SecretStore, Error> {
        // As the SDKs do, an empty name counts as none.
        let name = body.name.filter(|name| !name.is_empty()).map(checked_name).transpose()?;
        let list = body.egress_allowlist.map(|texts| hosts("egressAllowlist", texts)).transpose()?;
        let (app, caller, id) = (Arc::clone(self), caller.clone(), id.clone());
        let note = caller.note(Kind::SecretStore).with("action", "change").with("store", id.as_str());
        let hosts = list.as_ref().map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
        let note = note.with("name", name.clone()).with("egressAllowlist", hosts);
        self.change(note, async move {
            let changed =
                app.store.change_secret_store(caller.org(), &id, name.as_deref(), list.as_deref()).await?;
            let row = match changed {
                StoreChanged::Yes(row) => *row,
                StoreChanged::Taken => return Err(taken()),
                StoreChanged::Absent => return Err(store_not_found()),
            };
            if list.is_some() {
                app.access_changes.count();
                let attached = app.store.list_with_store(&id).await?;
                app.push_access(&attached, Told::POLICY).await;
            }
            Ok(view(row))
        })
        .await
    }

    /// Deletes a store. Its secrets are gone from its sandboxes; what its list kept from them stays so.
    pub(crate) async fn delete_secret_store(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SecretStoreId,
    ) -> Result<(), Error> {
        let (app, caller, id) = (Arc::clone(self), caller.clone(), id.clone());
        let note = caller.note(Kind::SecretStore).with("action", "delete").with("store", id.as_str());
        self.change(note, async move {
            let attached = app.store.delete_secret_store(caller.org(), &id, keep_list).await?;
            let attached = attached.ok_or_else(store_not_found)?;
            app.access_changes.count();
            let attached: Vec<_> = attached.into_iter().map(|id| (caller.org().clone(), id)).collect();
            app.push_access(&attached, Told::BOTH).await;
            Ok(())
        })
        .await
    }

    /// Deletes the store of a sandbox's uppermost layer, if it has one.
    pub(crate) async fn delete_store_of(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &SandboxId,
    ) -> Result<(), Error> {
        let record = self.store.find_access_record(sandbox).await?;
        match record.stores.last() {
            Some(store) => self.delete_secret_store(caller, store).await,
            None => Ok(()),
        }
    }

    pub(super) async fn own_secret_store(
        &self,
        caller: &Caller,
        id: &SecretStoreId,
    ) -> Result<SecretStoreRow, Error> {
        self.store.find_secret_store(caller.org(), id).await?.ok_or_else(store_not_found)
    }
}

fn checked_name(name: String) -> Result<String, Error> {
    if name.trim().is_empty() {
        return Err(Error::invalid("name is required"));
    }
    if name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
        return Err(Error::invalid(format!(
            "name must be at most {MAX_NAME_BYTES} bytes without control characters"
        )));
    }
    Ok(name)
}

fn taken() -> Error {
    Error::conflict("a store with that name already exists")
}

fn view(row: SecretStoreRow) -> SecretStore {
    SecretStore {
        id: row.id.to_string(),
        org_id: row.org.to_string(),
        name: row.name,
        egress_allowlist: row.egress_allowlist.iter().map(ToString::to_string).collect(),
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}
