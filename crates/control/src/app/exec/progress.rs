//! What an async command has come to so far.

use axum::body::Body;
use http::{HeaderMap, Method};
use warren_api::exec::ExecProgress;
use warren_guest_api::exec::REPLAY_BYTES;
use warren_guest_api::frame::{Frame, MAX_PAYLOAD};
use warren_types::{Error, ErrorKind, ExecId};

use super::output::{Collected, OutputStream};
use crate::app::App;
use crate::app::auth::Live;

/// How long a question is held while the command runs.
const HOLD_MS: u64 = 500;
/// Replay a guest may send: what it should, and one frame for an agent that counts in whole ones.
const MAX_REPLAY_BYTES: usize = REPLAY_BYTES as usize + MAX_PAYLOAD;

impl App {
    /// Answers as soon as the command has ended, or after a short hold with what there is.
    pub(crate) async fn exec_progress(&self, live: &Live, exec: &ExecId) -> Result<ExecProgress, Error> {
        let found = self.wait_exec(live, exec, HOLD_MS).await?;
        if let Some(exit) = found.exit {
            self.audit.exit_of(live, exec).seen(exit.code);
        }
        let (collected, truncated) = self.replay(live, exec).await?;
        let (stdout, stderr) = collected.into_text(found.exit);
        let ended = found.ended_at_ms.map(|ended| ended.saturating_sub(found.started_at_ms));
        Ok(ExecProgress {
            running: found.running,
            exit_code: found.exit.map(|exit| exit.code),
            stdout,
            stderr,
            truncated: truncated || found.log_start > 0,
            error: None,
            command_ms: ended.filter(|ms| *ms > 0),
        })
    }

    /// The newest output over both streams, and whether older output is missing from it.
    async fn replay(&self, live: &Live, exec: &ExecId) -> Result<(Collected, bool), Error> {
        let path = format!("exec/{exec}/replay");
        let answer = self.guest(live, Method::GET, &path, HeaderMap::new(), Body::empty()).await?;
        let mut output = OutputStream::new(answer.into_body());
        let (_, offset) = output.started().await?;
        let mut collected = Collected::default();
        loop {
            match output.next().await? {
                Frame::ReplayEnd => return Ok((collected, offset > 0)),
                frame => collected.push(frame),
            }
            if collected.len() > MAX_REPLAY_BYTES {
                return Err(Error::new(
                    ErrorKind::SandboxFailed,
                    "the sandbox replays more output than it should",
                ));
            }
        }
    }
}
