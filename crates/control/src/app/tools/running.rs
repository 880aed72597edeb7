//! Starting what a tool waits for, and ending it when nobody waits any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::Instrument;
use warren_api::exec::{ExecCreate, ExecKill};
use warren_types::{Error, ExecId};

use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::one_shot;
use crate::app::exec::output::OutputStream;

/// What command lines are for. Where a sandbox has no bash, its `/bin/sh` reads them.
const SHELLS: [&str; 2] = ["bash", "/bin/sh"];

/// A command line and what goes with it.
#[derive(Debug, Clone, Default)]
pub(super) struct CommandLine {
    pub command: String,
    pub cwd: Option<String>,
    pub env: Option<BTreeMap<String, String>>,
    pub timeout_seconds: Option<u64>,
}

/// Ends a command when it is dropped: whoever called has gone.
pub(super) struct KillOnDrop {
    of: Option<(Arc<App>, Live, ExecId)>,
}

impl CommandLine {
    fn read_by(&self, shell: &str) -> ExecCreate {
        ExecCreate {
            cmd: Some(shell.to_owned()),
            args: Some(vec!["-c".to_owned(), self.command.clone()]),
            envs: self.env.clone(),
            cwd: self.cwd.clone(),
            timeout: self.timeout_seconds.and_then(|seconds| i64::try_from(seconds).ok()),
            max_run_after_disconnect: None,
        }
    }

    /// With the shell that command lines are for, and with the one to try next. What cannot be started for another reason fails
    /// with the second one too, and that is what is told.
    pub(super) fn bodies(&self) -> Result<[ExecCreate; 2], Error> {
        if self.command.contains('\0') {
            return Err(Error::invalid("command must not contain NUL characters"));
        }
        Ok(SHELLS.map(|shell| self.read_by(shell)))
    }
}

impl KillOnDrop {
    pub(super) fn new(app: &Arc<App>, live: &Live, exec: &ExecId) -> Self {
        Self { of: Some((Arc::clone(app), live.clone(), exec.clone())) }
    }

    /// It has ended, or is left to itself.
    pub(super) fn leave(mut self) {
        self.of = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some((app, live, exec)) = self.of.take() else { return };
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

/// Starts a program with a time limit and no input, and returns its output as it comes.
pub(super) async fn open(
    app: &Arc<App>,
    live: &Live,
    body: ExecCreate,
) -> Result<(OutputStream, ExecId), Error> {
    let mut output = app.open_run(live, &one_shot(body)?).await?;
    let (exec, _) = output.started().await?;
    Ok((output, exec))
}
