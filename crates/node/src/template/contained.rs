//! Runs host programs so that nothing of them can stay behind.
//!
//! A command gets mount and process namespaces of its own. Everything it starts dies and everything it mounts goes
//! with those namespaces, which end when the command ends, when the future is dropped, when the deadline passes, and
//! when this process dies in any way: the first process inside holds the read end of a pipe from us and leaves when
//! it closes. Output is bounded: the head of stdout is returned, the tail of stderr is kept for the error.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

const STDOUT_LIMIT: usize = 1024 * 1024;
const LINE_LIMIT: usize = 4096;
const TAIL_LINES: usize = 30;

/// First process of the namespaces: runs the command and ends, with all that is inside, when the command has ended.
/// When our end of standard input is gone, it ends everybody else, and with that the command.
const LIFELINE: &str = r#"
[ $$ = 1 ] || exit 125
exec 3<&0
"$@" </dev/null 3<&- &
work=$!
{ cat <&3 >/dev/null 2>&1; kill -KILL -1; } &
wait "$work"
"#;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("`{program}` is not installed")]
    NotInstalled { program: String },
    #[error("`{program}` could not be started")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("lost the output of `{program}`")]
    Output {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` failed ({status}): {tail}")]
    Failed { program: String, status: ExitStatus, tail: String },
    #[error("`{program}` did not finish within {} s: {tail}", after.as_secs())]
    TimedOut { program: String, after: Duration, tail: String },
}

/// One command, to be run contained.
pub(crate) struct Contained<'a> {
    program: &'a str,
    args: Vec<OsString>,
    directory: &'a Path,
    deadline: Duration,
    on_line: Option<&'a (dyn Fn(&str) + Send + Sync)>,
}

impl<'a> Contained<'a> {
    pub(crate) fn new(program: &'a str, deadline: Duration) -> Self {
        Self { program, args: Vec::new(), directory: Path::new("/"), deadline, on_line: None }
    }

    pub(crate) fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn directory(mut self, directory: &'a Path) -> Self {
        self.directory = directory;
        self
    }

    /// Hands over each line of stderr as it comes.
    pub(crate) fn on_line(mut self, on_line: &'a (dyn Fn(&str) + Send + Sync)) -> Self {
        self.on_line = Some(on_line);
        self
    }

    /// Runs it to its end and returns what it wrote to stdout.
    pub(crate) async fn run(self) -> Result<String, CommandError> {
        let program = self.program.to_owned();
        if find_program(self.program).is_none() {
            return Err(CommandError::NotInstalled { program });
        }
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                LIFELINE,
                "warren",
            ])
            .arg(self.program)
            .args(&self.args)
            .current_dir(self.directory)
            .env("PATH", search_path())
            .env("LC_ALL", "C.UTF-8")
            // Ctrl-C in a terminal is for us; what we started ends because we end it.
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let _lifeline = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut tail = Tail { lines: VecDeque::new(), on_line: self.on_line };
        let finished = tokio::time::timeout(self.deadline, async {
            let (head, ()) = tokio::try_join!(head_of(stdout), tail.follow(stderr))?;
            Ok::<_, io::Error>((head, child.wait().await?))
        })
        .await;
        match finished {
            Ok(Ok((head, status))) if status.success() => Ok(head),
            Ok(Ok((_, status))) => Err(CommandError::Failed { program, status, tail: tail.text() }),
            Ok(Err(source)) => Err(CommandError::Output { program, source }),
            Err(_) => Err(CommandError::TimedOut { program, after: self.deadline, tail: tail.text() }),
        }
    }
}

/// Reads to the end and keeps the first part.
async fn head_of(stream: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut kept = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        let room = STDOUT_LIMIT - kept.len();
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
}

struct Tail<'a> {
    lines: VecDeque<String>,
    on_line: Option<&'a (dyn Fn(&str) + Send + Sync)>,
}

impl Tail<'_> {
    async fn follow(&mut self, stream: Option<impl AsyncRead + Unpin>) -> io::Result<()> {
        let Some(mut stream) = stream else { return Ok(()) };
        let mut line = Vec::new();
        let mut chunk = vec![0; 4096];
        loop {
            let count = stream.read(&mut chunk).await?;
            if count == 0 {
                self.push(&mut line);
                return Ok(());
            }
            for &byte in &chunk[..count] {
                if byte == b'\n' || byte == b'\r' {
                    self.push(&mut line);
                } else if line.len() < LINE_LIMIT {
                    line.push(byte);
                }
            }
        }
    }

    fn push(&mut self, line: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        if let Some(on_line) = self.on_line {
            on_line(&text);
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(text);
    }

    fn text(&self) -> String {
        if self.lines.is_empty() {
            return "it said nothing".to_owned();
        }
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// `PATH` with the system directories, which a user's own often lacks.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(if path.is_empty() { "" } else { ":" });
    path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// Where a program is, if it is installed.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Contained<'_> {
        Contained::new("sh", Duration::from_secs(20)).args(["-c", script])
    }

    #[tokio::test]
    async fn output_status_and_the_tail_of_the_complaint_come_back() {
        if !crate::template::tests::is_root() {
            return;
        }
        assert_eq!(shell("echo out; echo err >&2").run().await.unwrap(), "out\n");
        let error = shell("seq 100 >&2; exit 3").run().await.unwrap_err();
        let CommandError::Failed { status, tail, .. } = error else { panic!("{error}") };
        assert_eq!(status.code(), Some(3));
        assert!(tail.starts_with("71\n") && tail.ends_with("\n100"), "{tail}");
    }

    #[tokio::test]
    async fn what_a_dropped_command_started_is_gone() {
        if !crate::template::tests::is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join("alive");
        // A grandchild in its own session keeps a lock for as long as it lives.
        let script = "touch alive; setsid flock alive sh -c 'touch started; sleep 600' & sleep 600";
        let file = {
            let run = shell(script).directory(directory.path()).run();
            tokio::pin!(run);
            while !directory.path().join("started").exists() {
                assert!(
                    tokio::time::timeout(Duration::from_millis(20), &mut run).await.is_err(),
                    "ended early"
                );
            }
            std::fs::File::open(&alive).unwrap()
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            assert!(std::time::Instant::now() < deadline, "the grandchild still lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_deadline_ends_it_and_a_missing_program_is_named() {
        if !crate::template::tests::is_root() {
            return;
        }
        let error = Contained::new("sh", Duration::from_millis(300))
            .args(["-c", "sleep 600"])
            .run()
            .await
            .unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        let error = Contained::new("no-such-program", Duration::from_secs(1)).run().await.unwrap_err();
        assert!(matches!(error, CommandError::NotInstalled { .. }), "{error}");
    }
}
