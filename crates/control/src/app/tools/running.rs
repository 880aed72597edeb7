//! Starting what a tool waits for.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_api::exec::ExecCreate;
use warren_types::Error;

use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::one_shot;
use crate::app::exec::watched::Watched;

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

/// Starts a program with a time limit and no input, which ends when whoever waits for it leaves.
pub(super) async fn open(app: &Arc<App>, live: &Live, body: ExecCreate) -> Result<Watched, Error> {
    app.start_watched(live, one_shot(body)?).await
}
