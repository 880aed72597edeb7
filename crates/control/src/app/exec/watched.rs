//! Commands that somebody waits for. When whoever waits leaves, they are ended with all they started; when this server stops,
//! they go on.

use std::sync::Arc;

use tracing::Instrument;
use warren_api::exec::ExecKill;
use warren_guest_api::exec::ExecStart;
use warren_types::{Error, ExecId};

use super::output::OutputStream;
use crate::app::App;
use crate::app::auth::Live;

/// A command, its output as it comes, and what ends it.
pub(in crate::app) struct Watched {
    pub output: OutputStream,
    pub exec: ExecId,
    pub guard: KillOnDrop,
}

/// Ends a command when it is dropped: whoever called has gone.
pub(in crate::app) struct KillOnDrop {
    of: Option<(Arc<App>, Live, ExecId)>,
}

impl App {
    /// Starts a command to wait for. Who leaves while it starts has left it, too.
    pub(in crate::app) async fn start_watched(
        self: &Arc<Self>,
        live: &Live,
        start: ExecStart,
    ) -> Result<Watched, Error> {
        let (app, live) = (Arc::clone(self), live.clone());
        self.to_the_end(async move {
            let mut output = app.open_run(&live, &start).await?;
            let (exec, _) = output.started().await?;
            let guard = KillOnDrop { of: Some((app, live, exec.clone())) };
            Ok(Watched { output, exec, guard })
        })
        .await
    }
}

impl KillOnDrop {
    /// It has ended, or is left to itself.
    pub(in crate::app) fn leave(mut self) {
        self.of = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some((app, live, exec)) = self.of.take() else { return };
        if app.shutdown.is_cancelled() {
            return;
        }
        let tasks = app.tasks.clone();
        let kill = async move {
            // It may have ended meanwhile, and its sandbox with it.
            if let Err(error) = app.kill_exec(&live, &exec, &ExecKill::default()).await {
                tracing::debug!(%error, "a command that nobody waits for could not be ended");
            }
        };
        tasks.spawn(kill.in_current_span());
    }
}
