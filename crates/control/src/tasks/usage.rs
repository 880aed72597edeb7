//! Looks at the memory of running sandboxes, with one call to the node for all of them, and writes down what was seen. Looks that
//! show about the same are one row, so a sandbox that idles for weeks takes a row, not one for each minute.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use warren_node_api::Usage;
use warren_types::{Error, SandboxId};

use crate::app::App;
use crate::app::usage::KEPT_MICROS;
use crate::store::now_micros;
use crate::store::usage::Sample;

/// How soon something that has begun to run is looked at.
const SOON: Duration = Duration::from_secs(2);
const LOOK_DEADLINE: Duration = Duration::from_secs(20);
const FORGET_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Looks differ by more than that, or by more than a [`SHARE`] of what was seen, when they are not about the same.
const ABOUT_KB: u64 = 1024;
const SHARE: u64 = 50;
/// A row is not made longer than that, in microseconds.
const LONGEST: i64 = 24 * 3600 * 1_000_000;

/// The row that the next look may belong to.
#[derive(Debug, Clone, Copy)]
struct Row {
    first_at: i64,
    last_at: i64,
    used_kb: i64,
}

/// What the looks so far have shown.
#[derive(Default)]
struct Looks {
    rows: HashMap<SandboxId, Row>,
    /// Runs that were looked at: a sandbox, and when it began to.
    known: HashSet<(String, i64)>,
}

pub(super) async fn look(app: Arc<App>) {
    let mut looks = Looks::default();
    let mut forgotten: Option<Instant> = None;
    while !app.shutdown.is_cancelled() {
        let next = Instant::now() + app.usage_every;
        let seen = tokio::select! {
            seen = looks.at_all(&app) => seen,
            () = app.shutdown.cancelled() => break,
        };
        if let Err(error) = seen {
            tracing::info!(%error, "what sandboxes use could not be seen; trying again soon");
        }
        if forgotten.is_none_or(|at| at.elapsed() > FORGET_EVERY) {
            match app.store.forget_usage(now_micros() - KEPT_MICROS).await {
                Ok(()) => forgotten = Some(Instant::now()),
                Err(error) => tracing::warn!(%error, "old usage could not be removed; trying again soon"),
            }
        }
        tokio::select! {
            () = looks.at_new_until(next, &app) => {}
            () = app.shutdown.cancelled() => break,
        }
    }
    // What runs now is known to have run until now.
    if let Err(error) = app.store.see_usage(now_micros(), &[]).await {
        tracing::warn!(%error, "what ran until the server stopped could not be written down");
    }
}

async fn ask(app: &App) -> Result<Vec<Usage>, Error> {
    tokio::time::timeout(LOOK_DEADLINE, app.node.list_usage())
        .await
        .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to say what sandboxes use")))
}

impl Looks {
    async fn at_all(&mut self, app: &App) -> Result<(), Error> {
        // Asked before: what begins meanwhile may not be in the node's answer.
        let running = app.store.list_runs().await?;
        let seen = ask(app).await?;
        let ids: HashSet<&str> = seen.iter().map(|usage| usage.id.as_str()).collect();
        self.rows.retain(|id, _| ids.contains(id.as_str()));
        self.known = running.into_iter().filter(|(id, _)| ids.contains(id.as_str())).collect();
        let now = now_micros();
        let samples = self.samples(app, seen, now);
        app.store.see_usage(now, &samples).await?;
        Ok(())
    }

    /// Looks at what has begun to run, of which nothing is known yet, until it is time for the next look at all. What is known already
    /// is left alone, so that many short sandboxes do not have all the long ones looked at, and written down, every two seconds.
    async fn at_new_until(&mut self, next: Instant, app: &App) {
        loop {
            let left = next.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(SOON)).await;
            if left <= SOON {
                return;
            }
            if let Err(error) = self.at_new(app).await {
                tracing::info!(%error, "what has begun to run could not be seen; trying again soon");
            }
        }
    }

    async fn at_new(&mut self, app: &App) -> Result<(), Error> {
        let running = app.store.list_runs().await?;
        let mut new: HashMap<String, i64> =
            running.into_iter().filter(|run| !self.known.contains(run)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut seen = ask(app).await?;
        seen.retain(|usage| {
            let run = new.remove_entry(usage.id.as_str());
            run.is_some_and(|run| self.known.insert(run))
        });
        let samples = self.samples(app, seen, now_micros());
        // A commit of nothing would still void what is remembered of the store.
        if !samples.is_empty() {
            app.store.see_samples(&samples).await?;
        }
        Ok(())
    }

    fn samples(&mut self, app: &App, seen: Vec<Usage>, now: i64) -> Vec<Sample> {
        let gap = i64::try_from(3 * app.usage_every.as_micros()).unwrap_or(i64::MAX);
        let mut samples = Vec::with_capacity(seen.len());
        for usage in seen {
            let used_kb = i64::try_from(usage.memory_bytes / 1024).unwrap_or(i64::MAX);
            let row =
                self.rows.entry(usage.id.clone()).or_insert(Row { first_at: now, last_at: now, used_kb });
            if !row.goes_on(now, used_kb, gap) {
                *row = Row { first_at: now, last_at: now, used_kb };
            }
            row.last_at = now;
            samples.push(Sample { id: usage.id, first_at: row.first_at, at: now, used_kb });
        }
        samples
    }
}

impl Row {
    fn goes_on(&self, now: i64, used_kb: i64, gap: i64) -> bool {
        let differs = used_kb.abs_diff(self.used_kb);
        let about = differs <= ABOUT_KB.max(self.used_kb.unsigned_abs() / SHARE);
        about
            && (self.last_at..=self.last_at.saturating_add(gap)).contains(&now)
            && now - self.first_at < LONGEST
    }
}
