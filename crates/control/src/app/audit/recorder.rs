//! Records of a program that works on the server's own files, beside a server that may run.

use std::io;
use std::path::Path;

use warren_types::OrgId;

use super::writer::{Ends, write_one};
use super::{Note, Who};
use crate::audit::seal::{Place, Seal};
use crate::store::audit::AuditStore;
use crate::store::{Store, StoreError};

#[derive(Debug)]
pub(crate) struct Recorder {
    records: AuditStore,
    ends: Ends,
    seal: Seal,
}

#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    #[error("the audit records cannot be used")]
    Store(#[from] StoreError),
    #[error("the key of the audit records cannot be used")]
    Key(#[source] io::Error),
    #[error("an audit record could not be synced to the drive")]
    Sync(#[source] io::Error),
}

impl Recorder {
    pub(crate) async fn open(data_dir: &Path, store: &Store) -> Result<Self, RecorderError> {
        let seal = Seal::open(data_dir).map_err(RecorderError::Key)?;
        let records = AuditStore::open(data_dir).await?;
        let ends = Ends::read(&records, store, &seal).await?;
        Ok(Self { records, ends, seal })
    }

    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Writes one record, on the drive and sealed when this returns.
    pub(crate) async fn record(
        &self,
        store: &Store,
        org: &OrgId,
        note: impl FnOnce(&Who) -> Note,
    ) -> Result<(), RecorderError> {
        write_one(&self.records, &self.seal, &self.ends, note(&Who::operator(org.clone()))).await?;
        self.records.sync().await.map_err(RecorderError::Sync)?;
        if let Some(head) = self.ends.get(org.as_str()) {
            let sealed = self.seal.seal(Place::Head, org.as_str(), head.seq, &head.hash);
            store.put_audit_heads(&[sealed]).await?;
        }
        Ok(())
    }
}
