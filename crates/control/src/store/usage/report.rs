//! What was used in a time, summed: by sandbox, by tag, and as it went for one sandbox.
//!
//! Sums are whole numbers (MiB times milliseconds), so that the same question has the same answer to the last digit: pages
//! go by it.

use jiff::Timestamp;
use sqlx::{FromRow, QueryBuilder, Sqlite, Transaction};
use warren_types::size::MIN_DISK_MB;
use warren_types::{OrgId, SandboxId, tags::Tags};

use crate::store::sandboxes::column;
use crate::store::tags::LabelKind;
use crate::store::{Store, StoreError, timestamp};

/// Memory or disk that whoever has it also had for a time.
pub(crate) type MbMillis = i64;

/// Which usage is asked for.
#[derive(Debug, Clone)]
pub(crate) struct UsageQuery {
    pub org: OrgId,
    /// Microseconds, the second one excluded and not in the future.
    pub from: i64,
    pub until: i64,
    pub tags: Vec<TagFilter>,
    pub order: Order,
}

/// A sandbox passes with any of the values of that tag, or, with `or_none`, without the tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TagFilter {
    pub key: String,
    pub values: Vec<String>,
    pub or_none: bool,
}

/// Largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Memory,
    Disk,
}

/// The last row of the page before.
#[derive(Debug, Clone)]
pub(crate) struct After {
    pub amount: MbMillis,
    pub name: String,
}

#[derive(Debug, Clone, Copy, Default, FromRow)]
pub(crate) struct Sum {
    pub memory: MbMillis,
    pub disk: MbMillis,
    pub sandboxes: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct OfSandbox {
    pub id: String,
    pub alias: Option<String>,
    pub status: String,
    pub tags: Tags,
    pub tags_updated_at: Option<Timestamp>,
    pub sum: Sum,
}

#[derive(Debug, Clone, FromRow)]
pub(crate) struct OfTag {
    pub name: String,
    #[sqlx(flatten)]
    pub sum: Sum,
}

/// A time in which a sandbox ran with that memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub(crate) struct Span {
    pub started_at: i64,
    /// Of one that goes on: until when is asked.
    pub ended_at: i64,
    pub memory_mb: i64,
}

/// What was seen of its memory from one look to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub(crate) struct Seen {
    pub first_at: i64,
    pub last_at: i64,
    pub mean_kb: i64,
    pub peak_kb: i64,
}

#[derive(FromRow)]
struct RawOfSandbox {
    name: String,
    alias: Option<String>,
    observed: String,
    tags: String,
    tags_updated_at: Option<i64>,
    #[sqlx(flatten)]
    sum: Sum,
}

impl Order {
    fn column(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

impl Sum {
    pub(crate) fn amount(&self, order: Order) -> MbMillis {
        match order {
            Order::Memory => self.memory,
            Order::Disk => self.disk,
        }
    }
}

impl UsageQuery {
    /// `WITH used AS (…)`: the sandboxes that pass, with what each took.
    fn begin(&self) -> QueryBuilder<Sqlite> {
        let mut query = QueryBuilder::new(format!(
            "WITH cut AS (SELECT u.sandbox_id, u.memory_mb, \
             CASE WHEN u.disk_mb > {MIN_DISK_MB} THEN u.disk_mb - {MIN_DISK_MB} ELSE 0 END AS over_mb, \
             CASE WHEN u.started_at > "
        ));
        query.push_bind(self.from).push(" THEN u.started_at ELSE ").push_bind(self.from);
        query.push(" END AS began, CASE WHEN u.ended_at < ").push_bind(self.until);
        query.push(" THEN u.ended_at ELSE ").push_bind(self.until);
        query.push(" END AS ended FROM usage_spans u WHERE u.org_id = ").push_bind(self.org.as_str());
        query.push(" AND (u.ended_at IS NULL OR u.ended_at > ").push_bind(self.from);
        query.push(") AND u.started_at < ").push_bind(self.until);
        // A window of the future is empty, and what runs now is not in it.
        query.push(" AND ").push_bind(self.from).push(" < ").push_bind(self.until);
        query.push(
            "), used AS (SELECT c.sandbox_id, CAST(sum(c.memory_mb * (c.ended - c.began) / 1000) AS BIGINT) AS memory, \
             CAST(sum(c.over_mb * (c.ended - c.began) / 1000) AS BIGINT) AS disk FROM cut c WHERE 1 = 1",
        );
        for filter in &self.tags {
            query.push(" AND (");
            if filter.or_none {
                query.push("NOT ");
                label(&mut query, &filter.key);
                query.push(")");
            }
            if !filter.values.is_empty() {
                query.push(if filter.or_none { " OR " } else { "" });
                label(&mut query, &filter.key);
                query.push(" AND l.value IN (");
                let mut values = query.separated(", ");
                for value in &filter.values {
                    values.push_bind(value);
                }
                query.push("))");
            }
            query.push(")");
        }
        query.push(" GROUP BY c.sandbox_id) ");
        query
    }
}

/// `EXISTS (SELECT 1 …` over the tag of a sandbox, left open.
fn label(query: &mut QueryBuilder<Sqlite>, key: &str) {
    query.push("EXISTS (SELECT 1 FROM sandbox_labels l WHERE l.sandbox_id = c.sandbox_id AND l.kind = ");
    query.push_bind(LabelKind::Tag.as_str()).push(" AND l.key = ").push_bind(key.to_owned());
}

/// The rows behind the last page, in order.
fn page(query: &mut QueryBuilder<Sqlite>, order: Order, after: Option<&After>, limit: u32) {
    let column = order.column();
    if let Some(after) = after {
        query.push(format!(" WHERE (g.{column} < ")).push_bind(after.amount);
        query.push(format!(" OR (g.{column} = ")).push_bind(after.amount);
        query.push(" AND g.name > ").push_bind(after.name.clone()).push("))");
    }
    query.push(format!(" ORDER BY g.{column} DESC, g.name LIMIT ")).push_bind(i64::from(limit));
}

/// Reads of usage that are all of one moment of the store.
#[derive(Debug)]
pub(crate) struct UsageReport(Transaction<'static, Sqlite>);

impl Store {
    pub(crate) async fn usage_report(&self) -> Result<UsageReport, StoreError> {
        self.reader.begin().await.map(UsageReport).map_err(StoreError::query("begin to read what was used"))
    }
}

impl UsageReport {
    pub(crate) async fn sum_usage(&mut self, asked: &UsageQuery) -> Result<Sum, StoreError> {
        let mut query = asked.begin();
        query.push(
            "SELECT CAST(coalesce(sum(memory), 0) AS BIGINT) AS memory, CAST(coalesce(sum(disk), 0) AS BIGINT) AS disk, \
             count(*) AS sandboxes FROM used",
        );
        query.build_query_as().fetch_one(&mut *self.0).await.map_err(StoreError::query("sum what was used"))
    }

    /// Of the sandboxes without that tag.
    pub(crate) async fn sum_untagged(&mut self, asked: &UsageQuery, key: &str) -> Result<Sum, StoreError> {
        let without = TagFilter { key: key.to_owned(), values: Vec::new(), or_none: true };
        let mut asked = asked.clone();
        asked.tags.push(without);
        self.sum_usage(&asked).await
    }

    pub(crate) async fn list_usage_of_sandboxes(
        &mut self,
        asked: &UsageQuery,
        after: Option<&After>,
        limit: u32,
    ) -> Result<Vec<OfSandbox>, StoreError> {
        let mut query = asked.begin();
        query.push(
            "SELECT * FROM (SELECT u.sandbox_id AS name, u.memory, u.disk, 1 AS sandboxes, s.alias, s.observed, s.tags, \
             s.tags_updated_at FROM used u JOIN sandboxes s ON s.id = u.sandbox_id) g",
        );
        page(&mut query, asked.order, after, limit);
        let rows: Vec<RawOfSandbox> = query
            .build_query_as()
            .fetch_all(&mut *self.0)
            .await
            .map_err(StoreError::query("list what sandboxes used"))?;
        rows.into_iter()
            .map(|row| {
                Ok(OfSandbox {
                    id: row.name,
                    alias: row.alias,
                    status: row.observed,
                    tags: column("sandboxes.tags", serde_json::from_str(&row.tags))?,
                    tags_updated_at: row.tags_updated_at.map(timestamp).transpose()?,
                    sum: row.sum,
                })
            })
            .collect()
    }

    pub(crate) async fn list_usage_of_tag(
        &mut self,
        asked: &UsageQuery,
        key: &str,
        after: Option<&After>,
        limit: u32,
    ) -> Result<Vec<OfTag>, StoreError> {
        let mut query = asked.begin();
        query.push(
            "SELECT * FROM (SELECT l.value AS name, CAST(sum(u.memory) AS BIGINT) AS memory, \
             CAST(sum(u.disk) AS BIGINT) AS disk, count(*) AS sandboxes FROM used u \
             JOIN sandbox_labels l ON l.sandbox_id = u.sandbox_id AND l.kind = ",
        );
        query.push_bind(LabelKind::Tag.as_str()).push(" AND l.key = ").push_bind(key.to_owned());
        query.push(" GROUP BY l.value) g");
        page(&mut query, asked.order, after, limit);
        query
            .build_query_as()
            .fetch_all(&mut *self.0)
            .await
            .map_err(StoreError::query("list what was used by tag"))
    }
}

impl Store {
    /// When a sandbox ran in that time, oldest first; spans are whole, also where they begin earlier.
    pub(crate) async fn list_spans(
        &self,
        id: &SandboxId,
        from: i64,
        until: i64,
    ) -> Result<Vec<Span>, StoreError> {
        sqlx::query_as(
            "SELECT started_at, coalesce(ended_at, $1) AS ended_at, memory_mb FROM usage_spans WHERE sandbox_id = $2 \
             AND started_at < $1 AND (ended_at IS NULL OR ended_at > $3) AND memory_mb > 0 ORDER BY started_at",
        )
        .bind(until)
        .bind(id.as_str())
        .bind(from)
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list when a sandbox ran"))
    }

    /// What was seen of its memory in that time, oldest first.
    pub(crate) async fn list_seen(
        &self,
        id: &SandboxId,
        from: i64,
        until: i64,
    ) -> Result<Vec<Seen>, StoreError> {
        sqlx::query_as(
            "SELECT first_at, last_at, sum_kb / samples AS mean_kb, peak_kb FROM usage_samples \
             WHERE sandbox_id = $1 AND last_at > $2 AND first_at < $3 ORDER BY first_at",
        )
        .bind(id.as_str())
        .bind(from)
        .bind(until)
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list what a sandbox was seen to use"))
    }
}
