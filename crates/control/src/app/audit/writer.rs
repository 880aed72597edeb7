//! The one task that writes records: it takes what has come meanwhile, chains it, and writes it as one group.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot, watch};

use super::walk::{Span, find_end, start, walk};
use super::{Entry, Job};
use crate::audit::chain::hash_of_row;
use crate::audit::seal::{Place, Seal};
use crate::store::audit::{AuditRow, AuditStore, Head, insert};
use crate::store::{Store, StoreError, now_micros};

/// Records written together, at most.
const GROUP: usize = 256;

/// Where each chain ends now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends(Arc<Mutex<HashMap<String, Head>>>);

impl Ends {
    /// Of what is stored and what was sealed. A chain that is not as it was left gets a record that says so before any other.
    pub(crate) async fn read(records: &AuditStore, store: &Store, seal: &Seal) -> Result<Self, StoreError> {
        let ends = Self::default();
        // Whose, then the seals, then the records: who comes meanwhile has a seal, and what they write is behind it.
        let mut orgs = records.list_orgs().await?;
        orgs.extend(store.list_org_ids().await?);
        let sealed = store.list_audit_heads().await?;
        orgs.extend(sealed.iter().map(|head| head.org.clone()));
        orgs.sort();
        orgs.dedup();
        let mut breaks = Vec::new();
        for org in orgs {
            let head = sealed.iter().find(|head| head.org == org);
            let (end, found) = find_end(records, seal, &org, head).await?;
            breaks.extend(found.map(|found| row_of(found.note(&org).entry())));
            ends.put(&org, end);
        }
        if !breaks.is_empty() {
            write(records, seal, &ends, &mut breaks).await?;
            records
                .sync()
                .await
                .map_err(|error| StoreError::query("sync the audit records")(error.into()))?;
            let heads = breaks.iter().map(|row| seal.seal(Place::Head, &row.org, row.seq, &row.hash));
            store.put_audit_heads(&heads.collect::<Vec<_>>()).await?;
        }
        Ok(ends)
    }

    /// Takes over what somebody else has written behind what is known. Records that are not of this installation are left to the writer.
    pub(super) async fn catch_up(
        &self,
        records: &AuditStore,
        seal: &Seal,
        org: &str,
    ) -> Result<(), StoreError> {
        let from = self.get(org).unwrap_or_else(start);
        if let (end, None) = walk(records, seal, org, from, Span::ToEnd).await? {
            self.put(org, end);
        }
        Ok(())
    }

    pub(crate) fn all(&self) -> Vec<(String, Head)> {
        self.lock().iter().map(|(org, head)| (org.clone(), head.clone())).collect()
    }

    pub(crate) fn get(&self, org: &str) -> Option<Head> {
        self.lock().get(org).cloned()
    }

    fn put(&self, org: &str, head: Head) {
        self.lock().insert(org.to_owned(), head);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Head>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

pub(super) async fn run(
    store: AuditStore,
    seal: Seal,
    ends: Ends,
    mut queue: mpsc::Receiver<Job>,
    told: watch::Sender<()>,
) {
    let mut jobs = Vec::with_capacity(GROUP);
    let mut failed = false;
    while queue.recv_many(&mut jobs, GROUP).await > 0 {
        let mut rows = Vec::with_capacity(jobs.len());
        let mut waiting = Vec::with_capacity(jobs.len());
        for job in jobs.drain(..) {
            match job {
                Job::Write(entry, done) => {
                    waiting.push((done, Some(rows.len())));
                    rows.push(row_of(entry));
                }
                Job::Flush(done) => waiting.push((Some(done), None)),
            }
        }
        let written = write(&store, &seal, &ends, &mut rows).await;
        if let Err(error) = &written {
            // Once, not for each record while a drive is full.
            if !std::mem::replace(&mut failed, true) {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    "audit records could not be written"
                );
            }
        } else {
            failed = false;
        }
        answer(waiting, &rows, written.is_ok());
        if !rows.is_empty() {
            let _ = told.send(());
        }
    }
}

type Waiting = (Option<oneshot::Sender<Option<i64>>>, Option<usize>);

fn answer(waiting: Vec<Waiting>, rows: &[AuditRow], is_written: bool) {
    for (done, index) in waiting {
        let seq = index.and_then(|index| rows.get(index)).map_or(0, |row| row.seq);
        if let Some(done) = done {
            // Who has left does not need to know.
            let _ = done.send(is_written.then_some(seq));
        }
    }
}

fn row_of(entry: Entry) -> AuditRow {
    AuditRow {
        id: 0,
        org: entry.org,
        seq: 0,
        at: 0,
        sandbox: entry.sandbox,
        kind: entry.kind.to_owned(),
        actor: entry.actor.to_string(),
        request: entry.request.map(|id| id.to_string()),
        detail: entry.detail,
        hash: String::new(),
        mac: None,
    }
}

/// Numbers, times, chains and seals rows, and writes them.
pub(super) async fn write(
    store: &AuditStore,
    seal: &Seal,
    ends: &Ends,
    rows: &mut [AuditRow],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let new_ends = chain_rows(seal, ends, rows.iter_mut());
    let new_ends = match store.append(rows).await {
        Ok(()) => new_ends,
        Err(error) if error.is_taken() => write_locked(store, seal, ends, rows, new_ends.keys()).await?,
        Err(error) => return Err(error),
    };
    for (org, head) in new_ends {
        ends.put(&org, head);
    }
    Ok(())
}

/// Somebody else (`warren keys` beside this server) was quicker: looks where they have ended and writes before they can again.
/// What they wrote is theirs only if they had the key.
async fn write_locked(
    store: &AuditStore,
    seal: &Seal,
    ends: &Ends,
    rows: &mut [AuditRow],
    orgs: impl Iterator<Item = &String>,
) -> Result<HashMap<String, Head>, StoreError> {
    let mut tx = store.begin().await?;
    let mut breaks = Vec::new();
    for org in orgs {
        let from = ends.get(org).unwrap_or_else(start);
        let (end, found) = walk(store, seal, org, from, Span::ToEnd).await?;
        breaks.extend(found.map(|found| row_of(found.note(org).entry())));
        ends.put(org, end);
    }
    let new_ends = chain_rows(seal, ends, breaks.iter_mut().chain(rows.iter_mut()));
    if !breaks.is_empty() {
        insert(&mut *tx, &breaks).await?;
    }
    insert(&mut *tx, rows).await?;
    tx.commit().await.map_err(StoreError::query("write audit records"))?;
    Ok(new_ends)
}

fn chain_rows<'a>(
    seal: &Seal,
    ends: &Ends,
    rows: impl Iterator<Item = &'a mut AuditRow>,
) -> HashMap<String, Head> {
    let mut new_ends: HashMap<String, Head> = HashMap::new();
    let at = now_micros();
    for row in rows {
        let end = new_ends.get(&row.org).cloned().or_else(|| ends.get(&row.org));
        let Head { seq, hash } = end.unwrap_or_else(start);
        row.seq = seq.saturating_add(1);
        row.at = at;
        row.hash = hash_of_row(row, &hash);
        row.mac = Some(seal.of_record(row));
        new_ends.insert(row.org.clone(), Head { seq: row.seq, hash: row.hash.clone() });
    }
    new_ends
}

/// One record of a program that is not the server, beside one that may run.
pub(crate) async fn write_one(
    store: &AuditStore,
    seal: &Seal,
    ends: &Ends,
    note: super::Note,
) -> Result<(), StoreError> {
    write(store, seal, ends, &mut [row_of(note.entry())]).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::audit::{Audit, Kind, Who};
    use crate::audit::chain::START;
    use crate::store::audit::AuditFilter;
    use warren_types::{Error, OrgId};

    fn seal(dir: &std::path::Path) -> Seal {
        Seal::open(dir).unwrap()
    }

    #[tokio::test]
    async fn two_writers_make_one_chain_without_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let open = async || {
            let store = AuditStore::open(dir.path()).await.unwrap();
            Audit::start(store, Ends::default(), seal(dir.path()), false)
        };
        let (ours, theirs) = (open().await, open().await);
        let who = Who::server(OrgId("o".into()));
        let many = async |audit: &Audit| {
            for _ in 0..50 {
                audit.note(who.note(Kind::Audit)).await.unwrap();
            }
        };
        tokio::join!(many(&ours), many(&theirs));
        let filter = AuditFilter { org: "o".into(), limit: 1000, ..AuditFilter::default() };
        let rows = ours.store.list(&filter).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
        let mut hash = START.to_owned();
        for row in &rows {
            assert_eq!(hash_of_row(row, &hash), row.hash);
            hash.clone_from(&row.hash);
        }
    }

    #[tokio::test]
    async fn what_is_asked_is_there_before_what_comes_of_it_and_also_when_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = AuditStore::open(dir.path()).await.unwrap();
        let audit = Audit::start(store, Ends::default(), seal(dir.path()), false);
        let who = Who::server(OrgId("o".into()));
        let note = || who.note(Kind::Exec).with("command", "x");
        audit.around(note(), async { Ok::<_, Error>(()) }).await.unwrap();
        audit
            .around(note(), async { Err::<(), _>(Error::not_found("no text of a guest")) })
            .await
            .unwrap_err();
        let left = audit.around(note(), std::future::pending::<Result<(), Error>>());
        tokio::time::timeout(std::time::Duration::from_millis(50), left).await.unwrap_err();
        audit.flush().await;
        let filter = AuditFilter { org: "o".into(), limit: 1000, ..AuditFilter::default() };
        let rows = audit.store.list(&filter).await.unwrap();
        let details: Vec<_> = rows.iter().map(|row| row.detail.as_str()).collect();
        assert_eq!(
            details,
            [
                r#"{"command":"x","outcome":"begun"}"#,
                r#"{"of":1,"outcome":"done"}"#,
                r#"{"command":"x","outcome":"begun"}"#,
                r#"{"error":"not_found","of":3,"outcome":"refused"}"#,
                r#"{"command":"x","outcome":"begun"}"#,
                r#"{"of":null,"outcome":"unknown"}"#,
            ]
        );
    }

    #[tokio::test]
    async fn a_chain_that_was_cut_off_goes_on_behind_its_seal_with_a_record_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let records = AuditStore::open(dir.path()).await.unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        store.put_audit_heads(&[seal(dir.path()).seal(Place::Head, "o", 9, "ab")]).await.unwrap();
        let ends = Ends::read(&records, &store, &seal(dir.path())).await.unwrap();
        let audit = Audit::start(records, ends, seal(dir.path()), false);
        let seq = audit.note(Who::server(OrgId("o".into())).note(Kind::Audit)).await.unwrap();
        assert_eq!(seq, 11);
        let filter = AuditFilter { org: "o".into(), limit: 1, ..AuditFilter::default() };
        let first = audit.store.list(&filter).await.unwrap().remove(0);
        assert_eq!((first.seq, first.kind.as_str()), (10, Kind::AuditBreak.as_str()));
    }
}
