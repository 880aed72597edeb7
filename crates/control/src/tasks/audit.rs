//! Takes what gateways decided from the node, records what was counted, removes records whose time is over.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;

const TAKE_EVERY: Duration = Duration::from_secs(2);
const TAKE_DEADLINE: Duration = Duration::from_secs(10);
/// The same when the server stops.
const LAST_DEADLINE: Duration = Duration::from_secs(2);
const COUNT_EVERY: Duration = Duration::from_secs(5);
const REMOVE_EVERY: Duration = Duration::from_secs(3600);

/// A batch is acknowledged after it is recorded. When the server stops, what is still being counted is taken as well.
pub(super) async fn take_events(app: Arc<App>) {
    let mut acknowledged = 0;
    let mut failed = false;
    let mut more = false;
    while !app.shutdown.is_cancelled() {
        if !more {
            tokio::select! {
                () = tokio::time::sleep(TAKE_EVERY) => {}
                () = app.shutdown.cancelled() => break,
            }
        }
        let taken = tokio::time::timeout(TAKE_DEADLINE, app.take_network_events(acknowledged, false)).await;
        more = false;
        match taken {
            Ok(Ok((batch, any))) => {
                more = any && batch != acknowledged;
                acknowledged = batch;
                failed = false;
            }
            // Said once, not every few seconds.
            Ok(Err(error)) if !failed => {
                tracing::info!(%error, "the node does not say what its gateway decided; asking again");
                failed = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    // The batch that was not acknowledged yet comes first.
    let last = async {
        while let Ok((batch, true)) = app.take_network_events(acknowledged, true).await {
            if batch == acknowledged {
                break;
            }
            acknowledged = batch;
        }
    };
    if tokio::time::timeout(LAST_DEADLINE, last).await.is_err() {
        tracing::info!("the node took too long to say what its gateway decided last");
    }
}

pub(super) async fn count(app: Arc<App>) {
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        app.audit.tell_counted().await;
    }
}

pub(super) async fn remove_old(app: Arc<App>, days: u32) {
    loop {
        if let Err(error) = app.remove_old_audit(days).await {
            tracing::warn!(%error, "old audit records could not be removed; trying again later");
        }
        tokio::time::sleep(REMOVE_EVERY).await;
    }
}
