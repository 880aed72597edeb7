//! What runs beside requests: the reconciler and the watch on the node's changes. Both are idempotent and take no
//! input but what is stored and what the node says, so missing a turn costs nothing but time.

pub(crate) mod reconcile;
mod watch;

use std::sync::Arc;

use tracing::{Instrument, info_span};

use crate::app::App;

/// Starts both; they end when the server stops.
pub(crate) fn spawn(app: &Arc<App>) {
    let stopped = app.shutdown.clone().cancelled_owned();
    let sweeping = reconcile::sweep(Arc::clone(app));
    app.tasks.spawn(
        async move {
            tokio::select! {
                () = stopped => {}
                () = sweeping => {}
            }
        }
        .instrument(info_span!("reconcile")),
    );
    let stopped = app.shutdown.clone().cancelled_owned();
    let watching = watch::watch(Arc::clone(app));
    app.tasks.spawn(
        async move {
            tokio::select! {
                () = stopped => {}
                () = watching => {}
            }
        }
        .instrument(info_span!("watch")),
    );
}
