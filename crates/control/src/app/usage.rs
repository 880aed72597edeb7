//! What sandboxes were given and used.
//!
//! What was given follows from states: the transaction that changes a sandbox ends one span and begins another, so every
//! second counts, however short. What was used is sampled ([`crate::tasks::usage`]). Time in which no server was there counts where
//! the sandbox is seen to have run through it, and ends with the last look where it did not.

mod points;
mod request;

use jiff::Timestamp;
use warren_api::usage::{
    SandboxUsage, SandboxUsageTotals, Usage, UsageAmount, UsageItem, UsageOfMany, UsageOfSandbox, UsageOfTag,
};
use warren_types::{Error, SandboxId};

use super::App;
use super::auth::{Caller, sandbox_not_found};
use crate::store::now_micros;
use crate::store::usage::report::{After, OfSandbox, OfTag, Sum, UsageQuery, UsageReport};
use request::{Cursor, Group};
pub(crate) use request::{SandboxUsageRequest, UsageRequest};

/// How long it is kept, in microseconds: the longest window there is.
pub(crate) const KEPT_MICROS: i64 = request::MAX_WINDOW;
/// Around a window: the looks before and after it say what was used at its ends.
const MARGIN: i64 = 5 * 60 * 1_000_000;

impl App {
    pub(crate) async fn get_usage(&self, caller: &Caller, request: &UsageRequest) -> Result<Usage, Error> {
        let now = now_micros();
        let place = request.place(now)?;
        let asked = UsageQuery {
            org: caller.org().clone(),
            from: place.window.from,
            until: place.until,
            tags: request.tags.clone(),
            order: request.order,
        };
        let mut report = self.store.usage_report().await?;
        let total = report.sum_usage(&asked).await?;
        let untagged = match &request.group {
            Group::Sandbox => None,
            Group::Tag(key) => Some(of_many(report.sum_untagged(&asked, key).await?)),
        };
        // One more than asked for tells whether there is a next page.
        let mut rows =
            usage_rows(&mut report, &asked, &request.group, place.after.as_ref(), request.limit + 1).await?;
        let more = rows.len() > request.limit as usize;
        rows.truncate(request.limit as usize);
        let next = rows.last().filter(|_| more).map(|(after, _)| {
            Cursor { window: place.window, until: place.until, after: after.clone() }.seal(request)
        });
        Ok(Usage {
            from: at(place.window.from)?,
            to: at(place.window.to)?,
            group_by: request.group.to_string(),
            total: amount(total),
            untagged,
            items: rows.into_iter().map(|(_, item)| item).collect(),
            next_cursor: next,
        })
    }

    pub(crate) async fn get_sandbox_usage(
        &self,
        caller: &Caller,
        id: &SandboxId,
        request: &SandboxUsageRequest,
    ) -> Result<SandboxUsage, Error> {
        let row = self.store.find_sandbox(caller.org(), id).await?.ok_or_else(sandbox_not_found)?;
        let now = now_micros();
        let window = request.window(now)?;
        let until = window.until(now);
        let spans = self.store.list_spans(id, window.from, until).await?;
        let seen = self.store.list_seen(id, window.from - MARGIN, until + MARGIN).await?;
        let points = points::points(&spans, &seen, window.from, until)?;
        let totals = points.iter().fold(SandboxUsageTotals::default(), |sum, point| SandboxUsageTotals {
            memory_allocated_gb_seconds: sum.memory_allocated_gb_seconds + point.memory_allocated_gb_seconds,
            memory_used_gb_seconds: sum.memory_used_gb_seconds + point.memory_used_gb_seconds,
            uptime_seconds: sum.uptime_seconds + point.uptime_seconds,
            memory_allocated_peak_mb: sum.memory_allocated_peak_mb.max(point.allocated_memory_mb),
            memory_used_peak_mb: sum.memory_used_peak_mb.max(point.used_memory_mb_peak),
        });
        Ok(SandboxUsage {
            sandbox_id: id.to_string(),
            alias: row.alias,
            from: at(window.from)?,
            to: at(window.to)?,
            totals,
            points,
        })
    }
}

/// Rows with what a next page needs to go on behind each.
async fn usage_rows(
    report: &mut UsageReport,
    asked: &UsageQuery,
    group: &Group,
    after: Option<&After>,
    limit: u32,
) -> Result<Vec<(After, UsageItem)>, Error> {
    Ok(match group {
        Group::Sandbox => {
            let rows = report.list_usage_of_sandboxes(asked, after, limit).await?;
            let item = |row: OfSandbox| {
                let place = After { amount: row.sum.amount(asked.order), name: row.id.clone() };
                let item = UsageItem::Sandbox(UsageOfSandbox {
                    sandbox_id: row.id,
                    alias: row.alias,
                    status: Some(row.status),
                    tags: row.tags,
                    tags_last_updated_at: row.tags_updated_at,
                    amount: amount(row.sum),
                });
                (place, item)
            };
            rows.into_iter().map(item).collect()
        }
        Group::Tag(key) => {
            let rows = report.list_usage_of_tag(asked, key, after, limit).await?;
            let item = |row: OfTag| {
                let place = After { amount: row.sum.amount(asked.order), name: row.name.clone() };
                let usage = of_many(row.sum);
                (place, UsageItem::Tag(UsageOfTag { tag_key: key.clone(), tag_value: row.name, usage }))
            };
            rows.into_iter().map(item).collect()
        }
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum has fewer digits than a double until it is of centuries"
)]
fn amount(sum: Sum) -> UsageAmount {
    let gb_seconds = |mb_millis: i64| mb_millis as f64 / (1024.0 * 1000.0);
    UsageAmount { memory_gb_seconds: gb_seconds(sum.memory), disk_overage_gb_seconds: gb_seconds(sum.disk) }
}

fn of_many(sum: Sum) -> UsageOfMany {
    UsageOfMany { amount: amount(sum), sandbox_count: u64::try_from(sum.sandboxes).unwrap_or(0) }
}

fn at(micros: i64) -> Result<Timestamp, Error> {
    Timestamp::from_microsecond(micros).map_err(|_| Error::invalid("the time is out of range"))
}
