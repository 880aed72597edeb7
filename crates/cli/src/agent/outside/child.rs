//! The agent's process: what it reads and writes, and that it ends with us. It is a child of a keeper of ours (see [`super::keeper`]),
//! which ends all there is of it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdout, Command};

use super::keeper::{self, GRACE, code_of};
use super::{Ended, Outside, Plan, Scratch};
use crate::agent::run::lines::{LineWriter, To, Told};
use crate::endings::Endings;
use crate::output::{Output, stdout_error};
use crate::terminal::{self, Before};

/// As `timeout` does.
const TIMED_OUT: u8 = 124;
/// For the keeper, which has to wait for the agent.
const PATIENCE: Duration = GRACE.saturating_add(Duration::from_secs(5));
/// For what was written and not yet read when the agent has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
const PIECE: usize = 64 << 10;

/// Told to end with this value.
struct Keeper(Child);

pub(super) async fn run(
    output: Output,
    program: &Path,
    plan: Plan,
    scratch: &Scratch,
    outside: &Outside<'_>,
) -> anyhow::Result<Ended> {
    let is_headless = outside.task.prompt.is_some();
    let ourselves = std::env::current_exe().context("could not find this program's own file")?;
    let mut command = Command::new(ourselves);
    command.args(keeper::arguments(scratch.folder.path(), program)).args(&plan.arguments);
    command.current_dir(scratch.path("work")).env_clear().envs(&plan.envs);
    if is_headless {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    }
    let before = Before::of_terminal();
    let mut endings = Endings::catch()?;
    keeper::inherit_orphans()?;
    let child = command.spawn().with_context(|| format!("could not start {}", program.display()))?;
    let mut keeper = Keeper(child);
    let told: Arc<Mutex<Told>> = Arc::default();
    let to = if output.json { To::Json { stream: "stdout", task: None } } else { To::Stdout };
    let mut shown = LineWriter::new(plan.lines, to, &told);
    let timeout = async {
        match outside.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(timeout);
    let ended = {
        let work = follow(&mut keeper.0, &mut shown, outside.task.prompt);
        tokio::pin!(work);
        loop {
            tokio::select! {
                status = &mut work => break Ok(status),
                () = &mut timeout => break Err(TIMED_OUT),
                // On a terminal Ctrl-C is the agent's own affair.
                code = endings.next() => if is_headless || code != 130 { break Err(code) },
            }
        }
    };
    let was_killed = match &ended {
        Ok(Ok(status)) => status.signal().is_some(),
        _ => keeper.end().await,
    };
    if was_killed {
        keeper::end_orphans().await;
        if let Some(before) = before {
            before.restore();
            terminal::leave_modes();
        }
    }
    let code = match ended {
        Ok(status) => code_of(status?),
        Err(code) => code,
    };
    shown.finish().map_err(stdout_error)?;
    let totals = told.lock().unwrap_or_else(PoisonError::into_inner).totals.clone();
    Ok(Ended { code, totals })
}

/// Gives it its prompt, shows what it writes, and waits for its end.
async fn follow(
    child: &mut Child,
    shown: &mut LineWriter,
    prompt: Option<&str>,
) -> anyhow::Result<ExitStatus> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let asking = async {
        if let (Some(mut stdin), Some(prompt)) = (stdin, prompt) {
            // One that ends without reading says why itself.
            let _ = stdin.write_all(prompt.as_bytes()).await;
        }
        anyhow::Ok(())
    };
    let talking = async { tokio::try_join!(asking, show(stdout, shown)).map(drop) };
    tokio::pin!(talking);
    let status = tokio::select! {
        talked = &mut talking => {
            talked?;
            child.wait().await
        }
        status = child.wait() => {
            // Nothing of it lives; what it wrote is there to be read.
            if let Ok(talked) = tokio::time::timeout(LAST_WORDS, talking).await {
                talked?;
            }
            status
        }
    };
    status.context("could not wait for the agent")
}

async fn show(stdout: Option<ChildStdout>, shown: &mut LineWriter) -> anyhow::Result<()> {
    let Some(mut stdout) = stdout else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    loop {
        let count = stdout.read(&mut piece).await.context("could not read what the agent writes")?;
        match piece.get(..count).filter(|read| !read.is_empty()) {
            Some(read) => shown.write_all(read).await.map_err(stdout_error)?,
            None => return Ok(()),
        }
    }
}

// === impl Keeper ===

impl Keeper {
    /// Has it end the agent, and waits; whether it could not do it.
    async fn end(&mut self) -> bool {
        self.tell();
        match tokio::time::timeout(PATIENCE, self.0.wait()).await {
            Ok(status) => status.is_ok_and(|status| status.signal().is_some()),
            Err(_) => {
                let _ = self.0.kill().await;
                true
            }
        }
    }

    fn tell(&self) {
        // None when it was waited for.
        if let Some(pid) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tell();
    }
}
