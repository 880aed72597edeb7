//! Pages of sandboxes, newest first.

use sqlx::{QueryBuilder, Sqlite};
use warren_types::{OrgId, SandboxId, SandboxState};

use super::{RawSandbox, SandboxRow, with_columns};
use crate::store::tags::LabelKind;
use crate::store::{Store, StoreError};

/// Which sandboxes a page holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListFilter {
    /// Any of these; all when empty.
    pub states: Vec<SandboxState>,
    /// All of these.
    pub labels: Vec<(LabelKind, String, String)>,
    /// Only what comes after this row in the order of the list.
    pub after: Option<(i64, SandboxId)>,
}

impl Store {
    /// At most `limit` rows.
    pub(crate) async fn list_sandboxes(
        &self,
        org: &OrgId,
        filter: &ListFilter,
        limit: u32,
    ) -> Result<Vec<SandboxRow>, StoreError> {
        let mut query: QueryBuilder<Sqlite> =
            QueryBuilder::new(with_columns!("SELECT", "FROM sandboxes s WHERE s.org_id = "));
        query.push_bind(org.as_str());
        if !filter.states.is_empty() {
            query.push(" AND s.observed IN (");
            let mut states = query.separated(", ");
            for state in &filter.states {
                states.push_bind(state.as_str());
            }
            query.push(")");
        }
        for (kind, key, value) in &filter.labels {
            query.push(" AND EXISTS (SELECT 1 FROM sandbox_labels l WHERE l.sandbox_id = s.id AND l.kind = ");
            query.push_bind(kind.as_str());
            query.push(" AND l.key = ").push_bind(key).push(" AND l.value = ").push_bind(value).push(")");
        }
        if let Some((created_at, id)) = &filter.after {
            query.push(" AND (s.created_at, s.id) < (").push_bind(created_at);
            query.push(", ").push_bind(id.as_str()).push(")");
        }
        query.push(" ORDER BY s.created_at DESC, s.id DESC LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<RawSandbox> = query
            .build_query_as()
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("list sandboxes"))?;
        rows.into_iter().map(RawSandbox::parse).collect()
    }
}
