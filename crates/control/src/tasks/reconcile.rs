//! Makes what is stored and what the node has agree.
//!
//! | the node has | the row is | done |
//! | --- | --- | --- |
//! | it | missing, or stopped | removed from the node |
//! | – | running or hibernated | row becomes `error`: its node no longer has it |
//! | it or not | creating, and no create of this process is at it | undone: removed from the node, row deleted |
//! | it | anything else | the node's report is applied if it is newer |
//! | a checkpoint | missing | removed from the node |
//! | a checkpoint or not | deleting | removed from the node, row deleted |
//! | – | checkpoint processing or ready | row becomes `failed` |
//! | a checkpoint | anything else | report applied if newer; patches sent if they differ; older ones thinned out if due |
//!
//! Runs once before the first request is served and then every [`EVERY`]. The node's list and the table are read one
//! after the other while creates and deletes go on, so a difference between the two is only a suspicion: each is looked
//! at again, alone, before anything is done about it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use warren_node_api::{CheckpointReport, CheckpointState, Report};
use warren_types::{CheckpointId, Error, SandboxId, SandboxState};

use crate::app::App;
use crate::app::audit::{Kind, Who};
use crate::app::idempotency::KEPT_MICROS;
use crate::app::secrets::{KEPT_USES, KEPT_USES_MICROS};
use crate::store::checkpoints::{CheckpointStanding, Status};
use crate::store::now_micros;
use crate::store::sandboxes::{Intent, SandboxStanding};

pub(crate) const EVERY: Duration = Duration::from_secs(30);
/// How long the node may take to list what it has.
const LIST_DEADLINE: Duration = Duration::from_secs(30);
/// A node may say what a secret was used for this much after its sandbox has ended, in microseconds.
const LAST_USES: i64 = 10 * 60 * 1_000_000;
const LOST: &str = "its node no longer has it";
const CUT_OFF: &str = "the server ended while it was being made";

pub(super) async fn sweep(app: Arc<App>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = reconcile(&app).await {
            tracing::warn!(%error, "what the node has could not be compared with what is stored; trying again soon");
        }
        if let Err(error) = tidy(&app).await {
            tracing::warn!(%error, "the store could not be tidied; trying again soon");
        }
    }
}

/// One comparison, and what follows from it. One sandbox that cannot be helped does not keep the others from it.
pub(crate) async fn reconcile(app: &Arc<App>) -> Result<(), Error> {
    reconcile_sandboxes(app).await?;
    reconcile_checkpoints(app).await
}

async fn reconcile_sandboxes(app: &App) -> Result<(), Error> {
    let reports = list(app).await?;
    let on_node: HashMap<&SandboxId, &Report> = reports.iter().map(|report| (&report.id, report)).collect();
    let rows = app.store.list_unstopped().await?;
    let known: HashSet<&SandboxId> = rows.iter().map(|row| &row.id).collect();

    for report in reports.iter().filter(|report| !known.contains(&report.id)) {
        remove_unknown(app, &report.id).await?;
    }
    let mut missing = Vec::new();
    for row in &rows {
        match (row.observed, on_node.get(&row.id)) {
            (SandboxState::Creating, _) => undo_create(app, &row.id).await?,
            (_, Some(report)) => apply(app, row, report).await?,
            (SandboxState::Running | SandboxState::Hibernated, None) => missing.push(row),
            (SandboxState::Error | SandboxState::Stopped, None) => {}
        }
    }
    if !missing.is_empty() {
        mark_lost(app, &missing).await?;
    }
    Ok(())
}

async fn list(app: &App) -> Result<Vec<Report>, Error> {
    tokio::time::timeout(LIST_DEADLINE, app.node.list_sandboxes())
        .await
        .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to list its sandboxes")))
}

/// The row as it is now, unless a create of this process is at it. The order matters: an id leaves the creates under
/// way only after its row is settled.
async fn settled(app: &App, id: &SandboxId) -> Result<Option<Option<SandboxStanding>>, Error> {
    if app.in_flight.contains(id) {
        return Ok(None);
    }
    Ok(Some(app.store.find_standing(id).await?))
}

async fn remove_unknown(app: &App, id: &SandboxId) -> Result<(), Error> {
    let Some(row) = settled(app, id).await? else { return Ok(()) };
    let wanted =
        row.is_some_and(|row| row.intent != Intent::Deleted && row.observed != SandboxState::Stopped);
    if !wanted {
        tracing::info!(sandbox = %id, "removing a sandbox that is not meant to be there");
        remove(app, id).await;
    }
    Ok(())
}

async fn undo_create(app: &App, id: &SandboxId) -> Result<(), Error> {
    let Some(Some(row)) = settled(app, id).await? else { return Ok(()) };
    if row.observed == SandboxState::Creating {
        tracing::info!(sandbox = %id, "undoing a create that was interrupted");
        // The row goes last: while it is there the id cannot be given to another sandbox.
        if remove(app, id).await {
            app.store.remove_creating(id).await?;
        }
    }
    Ok(())
}

async fn remove(app: &App, id: &SandboxId) -> bool {
    match app.ensure_absent(id).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(sandbox = %id, %error, "the node could not remove a sandbox; trying again soon");
            false
        }
    }
}

async fn apply(app: &App, row: &SandboxStanding, report: &Report) -> Result<(), Error> {
    let news = report.generation > row.generation
        || (report.generation == row.generation && report.state != row.observed);
    if news && report.state != SandboxState::Creating {
        app.take_report(report).await?;
    }
    Ok(())
}

async fn mark_lost(app: &App, missing: &[&SandboxStanding]) -> Result<(), Error> {
    // Asked again after the rows were read: whatever was made meanwhile is in this list.
    let there: HashSet<SandboxId> = list(app).await?.into_iter().map(|report| report.id).collect();
    for row in missing.iter().filter(|row| !there.contains(&row.id)) {
        if app.store.mark_lost(&row.id, LOST).await? {
            tracing::warn!(sandbox = %row.id, "a sandbox is lost: {LOST}");
            let note = Who::server(row.org.clone()).note(Kind::SandboxState).of(&row.id);
            app.audit.tell(note.with("state", SandboxState::Error.as_str()).with("reason", LOST)).await;
        }
    }
    Ok(())
}

async fn reconcile_checkpoints(app: &Arc<App>) -> Result<(), Error> {
    // A row is there before its node hears of it and until it has forgotten it: in this order a row that is missing was
    // missing when the node was asked.
    let reports = list_checkpoints(app).await?;
    let rows = app.store.list_checkpoint_standings().await?;
    let known: HashMap<&CheckpointId, &CheckpointStanding> = rows.iter().map(|row| (&row.id, row)).collect();
    let on_node: HashMap<&CheckpointId, &CheckpointReport> =
        reports.iter().map(|report| (&report.checkpoint_id, report)).collect();

    for report in reports.iter().filter(|report| !known.contains_key(&report.checkpoint_id)) {
        let id = &report.checkpoint_id;
        tracing::info!(checkpoint = %id, "removing a checkpoint that nobody knows");
        if let Err(error) = app.node.ensure_checkpoint_absent(id).await {
            tracing::warn!(checkpoint = %id, %error, "the node could not remove a checkpoint; trying again soon");
        }
    }
    let mut missing = Vec::new();
    for row in &rows {
        match (row.status, on_node.get(&row.id)) {
            (Status::Deleting, _) => app.finish_checkpoint_delete(&row.id).await,
            (_, Some(report)) => apply_checkpoint(app, row, report).await?,
            (Status::Processing | Status::Ready, None) => missing.push(row),
            (Status::Failed, None) => {}
        }
    }
    if !missing.is_empty() {
        fail_missing(app, &missing).await?;
    }
    app.thin_out_checkpoints().await
}

async fn list_checkpoints(app: &App) -> Result<Vec<CheckpointReport>, Error> {
    tokio::time::timeout(LIST_DEADLINE, app.node.list_checkpoints())
        .await
        .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to list its checkpoints")))
}

async fn apply_checkpoint(
    app: &Arc<App>,
    row: &CheckpointStanding,
    report: &CheckpointReport,
) -> Result<(), Error> {
    if report.generation > row.generation {
        app.take_checkpoint_report(report).await?;
    }
    if report.state == CheckpointState::Ready && report.patches != row.patches {
        tracing::info!(checkpoint = %row.id, "sending the patches of a checkpoint to its node again");
        app.send_patches_again(&row.id).await?;
    }
    Ok(())
}

async fn fail_missing(app: &App, missing: &[&CheckpointStanding]) -> Result<(), Error> {
    // Asked again after the rows were read: what was made meanwhile is in this list, or still under way here.
    let there: HashSet<CheckpointId> =
        list_checkpoints(app).await?.into_iter().map(|report| report.checkpoint_id).collect();
    for row in missing {
        if there.contains(&row.id) || app.checkpoints_in_flight.contains(&row.id) {
            continue;
        }
        let why = if row.status == Status::Processing { CUT_OFF } else { LOST };
        if app.store.fail_checkpoint(&row.id, why).await? {
            tracing::warn!(checkpoint = %row.id, "a checkpoint is lost: {why}");
            app.checkpoint_changed.notify_waiters();
            app.tell_of_failed_checkpoint(&row.id).await?;
        }
    }
    Ok(())
}

async fn tidy(app: &App) -> Result<(), Error> {
    app.store.forget_idempotency_keys(now_micros() - KEPT_MICROS).await?;
    app.store.forget_secret_uses(now_micros() - KEPT_USES_MICROS, KEPT_USES).await?;
    app.store.forget_tokens(now_micros() - LAST_USES).await?;
    app.store.forget_former_secrets(now_micros() - LAST_USES).await?;
    let used = app.used_keys.take();
    if !used.is_empty() {
        app.store.touch_keys(&used).await?;
    }
    Ok(())
}
