//! What keeps records: synced to the drive, their ends sealed apart from them, the oldest removed when their time is over.

use std::time::Duration;

use super::Kind;
use super::Who;
use super::walk::find_break_until;
use crate::app::App;
use crate::audit::seal::Place;
use crate::store::{StoreError, now_micros};
use warren_types::{Error, OrgId};

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;
const SYNC_AFTER: Duration = Duration::from_millis(500);
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl App {
    /// Syncs and seals a little after each record and once for all that come together. Runs for ever.
    pub(crate) async fn keep_audit(&self) {
        let mut written = self.audit.written.clone();
        // What the last run had no time to seal.
        written.mark_changed();
        while written.changed().await.is_ok() {
            tokio::time::sleep(SYNC_AFTER).await;
            if let Err(error) = self.seal_audit().await {
                tracing::warn!(%error, "the ends of the audit records could not be sealed; trying again soon");
                written.mark_changed();
                tokio::time::sleep(TRY_AGAIN).await;
            }
            // So that it happens once a second at most.
            tokio::time::sleep(SYNC_AFTER).await;
        }
    }

    /// A record is on the drive before it is sealed: a seal of what a loss of power took would accuse somebody.
    pub(crate) async fn seal_audit(&self) -> Result<(), Error> {
        let ends = self.audit.ends.all();
        let mut sealed = self.audit.sealed.lock().await;
        let heads: Vec<_> = ends
            .into_iter()
            .filter(|(org, head)| sealed.get(org).is_none_or(|seq| *seq < head.seq))
            .map(|(org, head)| self.audit.seal.seal(Place::Head, &org, head.seq, &head.hash))
            .collect();
        if heads.is_empty() {
            return Ok(());
        }
        let synced = self.audit.store.sync().await;
        synced.map_err(|error| Error::internal(format!("the audit records could not be synced: {error}")))?;
        self.store.put_audit_heads(&heads).await?;
        sealed.extend(heads.into_iter().map(|head| (head.org, head.seq)));
        Ok(())
    }

    /// Writes everything that is under way and seals the ends. For the end of a server.
    pub(crate) async fn finish_audit(&self) {
        self.audit.flush().await;
        if let Err(error) = self.seal_audit().await {
            tracing::warn!(%error, "the ends of the audit records could not be sealed; the next start does it");
        }
    }

    /// Removes records that are older than they have to be, and says so in a record.
    pub(crate) async fn remove_old_audit(&self, days: u32) -> Result<(), StoreError> {
        if days == 0 {
            return Ok(());
        }
        let before = now_micros() - i64::from(days) * DAY_MICROS;
        for org in self.audit.store.list_orgs().await? {
            let Some(last) = self.audit.store.find_last_before(&org, before).await? else { continue };
            // What is gone cannot be looked at any more.
            let found = find_break_until(&self.audit.store, &self.audit.seal, &org, last.seq).await?;
            if let Some(found) = found
                && self.audit.note(found.note(&org)).await.is_err()
            {
                continue;
            }
            let anchor = self.audit.seal.seal(Place::Anchor, &org, last.seq, &last.hash);
            let removed = self.audit.store.remove_until(&anchor).await?;
            tracing::info!(org, until = last.seq, removed, "old audit records were removed");
            let note = Who::server(OrgId(org)).note(Kind::Audit).with("action", "removed for their age");
            let note = note.with("until", last.seq).with("hash", last.hash).with("records", removed);
            self.audit.tell(note.with("days", days)).await;
        }
        Ok(())
    }
}
