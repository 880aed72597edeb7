//! Follows the node's changes, so that what is stored is true within a moment. Whatever is missed while the
//! connection is down comes with the next one, which starts with a report of every sandbox.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use warren_node_api::Change;
use warren_types::{Error, SandboxState};

use crate::app::App;
use crate::app::audit::{Kind, Who};
use crate::store::StoreError;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The node sends blank lines to show that it is there; a connection this silent is dead.
const SILENCE: Duration = Duration::from_secs(90);
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const MAX_LINE_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum WatchEnd {
    #[error("the node closed the connection")]
    Closed,
    #[error("the node has been silent for too long")]
    Silent,
    #[error("the connection broke")]
    Broke(#[source] axum::Error),
    #[error("a line is longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    #[error("a line is not a change")]
    NotAChange(#[source] serde_json::Error),
    #[error("a report could not be stored")]
    NotStored(#[source] StoreError),
    #[error("a report about a checkpoint could not be taken in")]
    NotTaken(#[source] Error),
}

pub(super) async fn watch(app: Arc<App>) {
    let mut pause = FIRST_PAUSE;
    // At start everything has been told already.
    let mut knows_access = true;
    loop {
        match tokio::time::timeout(OPEN_DEADLINE, app.node.watch_changes()).await {
            Ok(Ok(changes)) => {
                pause = FIRST_PAUSE;
                if !std::mem::replace(&mut knows_access, false)
                    && let Err(error) = app.push_all_access().await
                {
                    tracing::warn!(%error, "the node does not know yet what sandboxes may reach");
                }
                let end = follow(&app, changes).await;
                tracing::info!(
                    reason = &end as &dyn std::error::Error,
                    "the watch on the node ended; opening it again"
                );
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the node's changes cannot be watched; trying again soon");
            }
            Err(_) => tracing::warn!("the node does not answer; trying again soon"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn follow(app: &Arc<App>, mut changes: Body) -> WatchEnd {
    let mut buffer = BytesMut::new();
    loop {
        match tokio::time::timeout(SILENCE, changes.frame()).await {
            Err(_) => return WatchEnd::Silent,
            Ok(None) => return WatchEnd::Closed,
            Ok(Some(Err(error))) => return WatchEnd::Broke(error),
            Ok(Some(Ok(piece))) => {
                if let Ok(bytes) = piece.into_data() {
                    buffer.extend_from_slice(&bytes);
                }
            }
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            if let Err(end) = take_line(app, &line).await {
                return end;
            }
        }
        if buffer.len() > MAX_LINE_BYTES {
            return WatchEnd::LineTooLong;
        }
    }
}

async fn take_line(app: &Arc<App>, line: &[u8]) -> Result<(), WatchEnd> {
    if line.trim_ascii().is_empty() {
        return Ok(());
    }
    if line.len() > MAX_LINE_BYTES {
        return Err(WatchEnd::LineTooLong);
    }
    let report = match serde_json::from_slice(line).map_err(WatchEnd::NotAChange)? {
        Change::Sandbox(report) => report,
        Change::Checkpoint(report) => {
            return app.take_checkpoint_report(&report).await.map_err(WatchEnd::NotTaken);
        }
    };
    if report.state == SandboxState::Creating || app.in_flight.keep(&report) {
        return Ok(());
    }
    // Not one of ours, or nothing new: then no row changes, and the reconciler sees to what should not be there.
    let before = app.store.find_standing(&report.id).await.map_err(WatchEnd::NotStored)?;
    let changed = app.store.apply_report(&report).await.map_err(WatchEnd::NotStored)?;
    if let Some(before) = before.filter(|before| changed && before.observed != report.state) {
        let note = Who::server(before.org).note(Kind::SandboxState).of(&report.id);
        let note = note.with("state", report.state.as_str()).with("generation", report.generation);
        app.audit.tell(note.with("reason", report.reason.clone())).await;
    }
    Ok(())
}
