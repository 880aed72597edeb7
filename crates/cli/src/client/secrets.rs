//! Secret stores and secrets.

use reqwest::Method;
use serde_json::Value;
use warren_api::secrets::{
    SecretEntry, SecretSet, SecretStore, SecretStoreChange, SecretStoreCreate, SecretStored, SecretUse,
};

use super::{Answer, Client};
use crate::failure::hinted;

const STORES: &str = "secret-stores";

impl Client {
    pub(crate) async fn create_secret_store(
        &self,
        body: &SecretStoreCreate,
    ) -> anyhow::Result<Answer<SecretStore>> {
        self.call(self.request(Method::POST, &[STORES])?.json(body)).await
    }

    pub(crate) async fn list_secret_stores(&self) -> anyhow::Result<Answer<Vec<SecretStore>>> {
        self.call(self.request(Method::GET, &[STORES])?).await
    }

    pub(crate) async fn get_secret_store(&self, id: &str) -> anyhow::Result<Answer<SecretStore>> {
        self.call(self.request(Method::GET, &[STORES, id])?).await
    }

    pub(crate) async fn change_secret_store(
        &self,
        id: &str,
        body: &SecretStoreChange,
    ) -> anyhow::Result<Answer<SecretStore>> {
        self.call(self.request(Method::PUT, &[STORES, id])?.json(body)).await
    }

    pub(crate) async fn delete_secret_store(&self, id: &str) -> anyhow::Result<()> {
        self.call::<Value>(self.request(Method::DELETE, &[STORES, id])?).await.map(drop)
    }

    pub(crate) async fn list_secrets(&self, store: &str) -> anyhow::Result<Answer<Vec<SecretEntry>>> {
        self.call(self.request(Method::GET, &[STORES, store, "secrets"])?).await
    }

    pub(crate) async fn set_secret(
        &self,
        store: &str,
        name: &str,
        body: &SecretSet,
    ) -> anyhow::Result<Answer<SecretStored>> {
        self.call(self.request(Method::PUT, &[STORES, store, "secrets", name])?.json(body)).await
    }

    pub(crate) async fn delete_secret(&self, store: &str, name: &str) -> anyhow::Result<()> {
        self.call::<Value>(self.request(Method::DELETE, &[STORES, store, "secrets", name])?).await.map(drop)
    }

    pub(crate) async fn list_secret_uses(
        &self,
        store: &str,
        name: &str,
    ) -> anyhow::Result<Answer<Vec<SecretUse>>> {
        self.call(self.request(Method::GET, &[STORES, store, "secrets", name, "uses"])?).await
    }

    /// The id of a store that is given by its id or its name.
    pub(crate) async fn find_secret_store(&self, name_or_id: &str) -> anyhow::Result<String> {
        let stores = self.list_secret_stores().await?.value;
        let named = stores.iter().find(|store| store.name == name_or_id);
        let found = named.or_else(|| stores.iter().find(|store| store.id.eq_ignore_ascii_case(name_or_id)));
        found.map(|store| store.id.clone()).ok_or_else(|| {
            hinted(
                format!("there is no secret store {name_or_id:?}"),
                "`warren secret-store ls` lists them, `warren secret-store create NAME` makes one",
            )
        })
    }
}
