//! Follows the node's changes, so that what is stored is true within a moment. Whatever is missed while the
//! connection is down comes with the next one, which starts with a report of every sandbox.

use std::sync::Arc;

use axum::body::Body;
use warren_node_api::Change;
use warren_types::{Error, SandboxState};

use super::lines::{FIRST_PAUSE, LONGEST_PAUSE, Lines, LinesEnd, OPEN_DEADLINE};
use crate::app::App;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
enum WatchEnd {
    #[error(transparent)]
    Lines(#[from] LinesEnd),
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

async fn follow(app: &Arc<App>, changes: Body) -> WatchEnd {
    let mut lines = Lines::new(changes);
    loop {
        let taken = match lines.next().await {
            Ok(line) => take_line(app, &line).await,
            Err(end) => Err(end.into()),
        };
        if let Err(end) = taken {
            return end;
        }
    }
}

async fn take_line(app: &Arc<App>, line: &[u8]) -> Result<(), WatchEnd> {
    let report = match serde_json::from_slice(line).map_err(WatchEnd::NotAChange)? {
        Change::Sandbox(report) => report,
        Change::Checkpoint(report) => {
            return app.take_checkpoint_report(&report).await.map_err(WatchEnd::NotTaken);
        }
    };
    if report.state == SandboxState::Creating || app.in_flight.keep(&report) {
        return Ok(());
    }
    app.take_report(&report).await.map_err(WatchEnd::NotStored)
}
