//! The agent's process: what it reads and writes, and that it ends with us.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::{Ended, Outside, Plan};
use crate::agent::kinds::transcript::Transcript;
use crate::endings::Endings;
use crate::output::Output;

/// As `timeout` does.
const TIMED_OUT: u8 = 124;
/// For an agent to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);
const PIECE: usize = 64 << 10;

/// The process group of an agent without a terminal; gone with this value.
struct Group(Option<Pid>);

pub(super) async fn run(
    output: Output,
    program: &Path,
    plan: Plan,
    folder: &Path,
    outside: &Outside<'_>,
) -> anyhow::Result<Ended> {
    let is_headless = outside.task.prompt.is_some();
    let mut command = Command::new(program);
    command.args(&plan.arguments).current_dir(folder).env_clear().envs(&plan.envs).kill_on_drop(true);
    if is_headless {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    }
    let mut endings = Endings::catch()?;
    let mut child = command.spawn().with_context(|| format!("could not start {}", program.display()))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let group = Group(pid.filter(|_| is_headless));
    let mut transcript = Transcript::new(plan.lines);
    let timeout = async {
        match outside.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(timeout);
    let code = {
        let work = follow(&mut child, output, &mut transcript, outside.task.prompt);
        tokio::pin!(work);
        loop {
            tokio::select! {
                status = &mut work => break Ok(code_of(status?)),
                () = &mut timeout => break Err(TIMED_OUT),
                // On a terminal Ctrl-C is the agent's own affair.
                code = endings.next() => if is_headless || code != 130 { break Err(code) },
            }
        }
    };
    let code = match code {
        Ok(code) => code,
        Err(code) => {
            group.end(&mut child).await;
            code
        }
    };
    for line in transcript.finish() {
        show(output, &line)?;
    }
    Ok(Ended { code, totals: transcript.totals().clone() })
}

/// Gives it its prompt, shows what it writes, and waits for its end.
async fn follow(
    child: &mut Child,
    output: Output,
    transcript: &mut Transcript,
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
    let showing = async {
        let Some(mut stdout) = stdout else { return Ok(()) };
        let mut piece = vec![0; PIECE];
        let mut line = Vec::new();
        loop {
            let count = stdout.read(&mut piece).await.context("could not read what the agent writes")?;
            let Some(read) = piece.get(..count).filter(|read| !read.is_empty()) else {
                return anyhow::Ok(());
            };
            for shown in transcript.push(read) {
                show(output, &shown)?;
            }
            if output.json {
                raw(output, &mut line, read)?;
            }
        }
    };
    tokio::try_join!(asking, showing)?;
    child.wait().await.context("could not wait for the agent")
}

fn show(output: Output, line: &str) -> anyhow::Result<()> {
    if output.json { Ok(()) } else { output.line(line) }
}

/// One object for each line, with the agent's own in it.
fn raw(output: Output, begun: &mut Vec<u8>, read: &[u8]) -> anyhow::Result<()> {
    const MOST: usize = 8 << 20;
    for byte in read.split_inclusive(|byte| *byte == b'\n') {
        begun.extend_from_slice(byte);
        if !begun.ends_with(b"\n") && begun.len() < MOST {
            continue;
        }
        let line = std::mem::take(begun);
        let text = String::from_utf8_lossy(&line);
        let event = match serde_json::from_str::<Value>(&text) {
            Ok(event) => json!({ "type": "output", "stream": "stdout", "event": event }),
            Err(_) => json!({ "type": "output", "stream": "stdout", "text": text }),
        };
        output.line(&event.to_string())?;
    }
    Ok(())
}

/// As a shell says it.
fn code_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

// === impl Group ===

impl Group {
    /// Asks it to end, and makes it after a while.
    async fn end(&self, child: &mut Child) {
        self.signal(Signal::TERM);
        if self.0.is_none() || tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Group {
    /// What it started and left behind.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
