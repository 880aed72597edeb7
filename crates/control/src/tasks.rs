//! What runs beside requests: the reconciler, the watch on the node's changes, the answers to what sandboxes ask, the autoscaler, what keeps images within their budget, what looks at how much is used, what tells nodes of secrets and
//! takes from them what these were used for, and the sync of the store. The first two are idempotent and take no input but what is stored and what the node says, so missing a turn costs nothing but time.

mod access;
mod audit;
mod autoscale;
mod images;
mod lines;
mod questions;
pub(crate) mod reconcile;
mod usage;
mod watch;

use std::sync::Arc;

use tracing::{Instrument, Span, info_span};

use crate::app::App;
use crate::config::AuditSettings;

/// Starts them; they end when the server stops.
pub(crate) fn spawn(app: &Arc<App>, settings: &AuditSettings) {
    start(app, info_span!("reconcile"), reconcile::sweep(Arc::clone(app)));
    start(app, info_span!("watch"), watch::watch(Arc::clone(app)));
    start(app, info_span!("autoscale"), autoscale::autoscale(Arc::clone(app)));
    start(app, info_span!("access"), access::tell_again(Arc::clone(app)));
    start(app, info_span!("secret_uses"), access::take_uses(Arc::clone(app)));
    start(app, info_span!("questions"), questions::answer_all(Arc::clone(app)));
    start(app, info_span!("images"), images::sweep(Arc::clone(app)));
    // Takes what is left when the server stops.
    app.tasks.spawn(audit::take_events(Arc::clone(app)).instrument(info_span!("network_events")));
    // Says last what runs when the server stops.
    app.tasks.spawn(usage::look(Arc::clone(app)).instrument(info_span!("usage")));
    start(app, info_span!("audit"), audit::count(Arc::clone(app)));
    start(app, info_span!("audit"), audit::remove_old(Arc::clone(app), settings.retention_days));
    let keeper = Arc::clone(app);
    start(app, info_span!("audit"), async move { keeper.keep_audit().await });
    if let Some(target) = settings.otlp.clone() {
        let exporter = Arc::clone(app);
        start(app, info_span!("audit_export"), async move { exporter.export_audit(target).await });
    }
    let store = app.store.clone();
    start(app, info_span!("sync"), async move { store.keep_synced().await });
}

fn start(app: &Arc<App>, span: Span, work: impl Future<Output = ()> + Send + 'static) {
    let stopped = app.shutdown.clone().cancelled_owned();
    app.tasks.spawn(
        async move {
            tokio::select! {
                () = stopped => {}
                () = work => {}
            }
        }
        .instrument(span),
    );
}
