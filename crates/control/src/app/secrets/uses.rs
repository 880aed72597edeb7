//! What secrets were used for: taken from nodes, shown to their owners.

use warren_api::secrets::SecretUse;
use warren_node_api::{SecretUse as NodeUse, SecretUsesQuery};
use warren_types::Error;

use super::secret_not_found;
use crate::app::App;
use crate::app::auth::Caller;
use crate::store::now_micros;
use crate::store::secret_uses::NewUse;
use crate::store::secrets::SecretStoreId;

/// Rows of one secret that are kept.
pub(crate) const KEPT_USES: u32 = 1000;
/// How long they are kept: 30 days.
pub(crate) const KEPT_USES_MICROS: i64 = 30 * 24 * 60 * 60 * 1_000_000;
const MAX_HOST_BYTES: usize = 255;
const MAX_NAME_BYTES: usize = 128;
/// How far a node's clock may be ahead of ours.
const MAX_AHEAD_MICROS: i64 = 60 * 1_000_000;

impl App {
    /// Newest first.
    pub(crate) async fn list_secret_uses(
        &self,
        caller: &Caller,
        store: &SecretStoreId,
        name: &str,
    ) -> Result<Vec<SecretUse>, Error> {
        let store = self.own_secret_store(caller, store).await?;
        let secret = self.store.find_secret(&store.id, name).await?.ok_or_else(secret_not_found)?;
        let uses = self.store.list_secret_uses(&secret.id, KEPT_USES).await?;
        let uses = uses.into_iter().map(|row| SecretUse {
            at: row.used_at,
            host: row.host,
            sandbox_id: row.sandbox_id.to_string(),
            count: row.count,
        });
        Ok(uses.collect())
    }

    /// Takes the next batch of uses from the node: the one to acknowledge next, and whether there was anything in it.
    pub(crate) async fn take_secret_uses(&self, acknowledged: u64) -> Result<(u64, bool), Error> {
        let batch = self.node.take_secret_uses(SecretUsesQuery { acknowledged }).await?;
        let any = !batch.uses.is_empty();
        let uses: Vec<NewUse> = batch.uses.into_iter().filter_map(read).collect();
        if !uses.is_empty() {
            self.store.add_secret_uses(&uses).await?;
        }
        Ok((batch.batch, any))
    }
}

/// Hosts come from a guest's requests; what is none is left out.
fn read(one: NodeUse) -> Option<NewUse> {
    let plain = one.host.len() <= MAX_HOST_BYTES && one.host.bytes().all(|byte| byte.is_ascii_graphic());
    let used_at = i64::try_from(one.at_ms).ok()?.checked_mul(1000)?;
    let new = NewUse {
        sandbox_id: one.sandbox,
        name: one.name,
        host: one.host,
        count: i64::from(u32::try_from(one.count).unwrap_or(u32::MAX)),
        used_at: used_at.min(now_micros() + MAX_AHEAD_MICROS),
    };
    (plain && new.name.len() <= MAX_NAME_BYTES).then_some(new)
}
