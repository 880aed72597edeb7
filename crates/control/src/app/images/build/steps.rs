//! Steps are run in the sandbox of a build. Programs get their arguments as they are: no shell reads anything but the commands
//! of a `run` step.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use tokio::time::Instant;
use warren_guest_api::exec::{ExecStart, Exit, ExitReason, ShellUse};
use warren_guest_api::files::Stat;
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind, SandboxId};

use super::failure::Said;
use super::lines::Lines;
use super::log::BuildStream;
use crate::app::App;
use crate::app::exec::output::OutputStream;
use crate::app::guest::{from_node, query_value};
use crate::app::images::steps::{DirFile, Step};

/// How long a step may take.
const STEP: Duration = Duration::from_secs(300);
/// What an agent gets beyond that to say that the time is over.
const GRACE: Duration = Duration::from_secs(30);
const SHELLS: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];
const FILE_MODE: &str = "644";

/// What steps have set for those after them.
#[derive(Debug, Clone, Default)]
pub(super) struct Config {
    pub envs: BTreeMap<String, String>,
    pub workdir: Option<String>,
}

/// A sandbox in which steps are run, one after the other.
#[derive(Debug)]
pub(super) struct Site {
    pub id: SandboxId,
    /// The lists of packages were fetched.
    updated: bool,
    /// Looked for once.
    shell: Option<&'static str>,
}

/// One step on its way.
struct Running<'a> {
    app: &'a App,
    log: &'a BuildStream,
    site: &'a SandboxId,
    index: usize,
    kind: &'static str,
    deadline: Instant,
}

// === impl Config ===

impl Config {
    /// What a step sets. The rest of it is run.
    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::Env { vars } => self.envs.extend(vars.clone()),
            Step::Workdir { path } => self.workdir = Some(path.clone()),
            Step::AptInstall { .. }
            | Step::PipInstall { .. }
            | Step::Run { .. }
            | Step::AddFile { .. }
            | Step::AddDir { .. } => {}
        }
    }
}

// === impl Site ===

impl Site {
    pub(super) fn new(id: SandboxId) -> Self {
        Self { id, updated: false, shell: None }
    }

    /// Runs a step. What goes wrong is told with its number, from 0.
    pub(super) async fn run(
        &mut self,
        app: &App,
        log: &BuildStream,
        (index, step): (usize, &Step),
        config: &Config,
    ) -> Result<(), Error> {
        let id = self.id.clone();
        let running =
            Running { app, log, site: &id, index, kind: step.kind(), deadline: Instant::now() + STEP };
        match step {
            // Lists that are put together by a program may be empty, and there is nothing to be done then.
            Step::AptInstall { packages } | Step::PipInstall { packages } if packages.is_empty() => Ok(()),
            Step::Run { commands } if commands.is_empty() => Ok(()),
            Step::AptInstall { packages } => {
                if !self.updated {
                    running.exec(apt(config, &["update".to_owned()])).await?;
                    self.updated = true;
                }
                let arguments = ["install", "-y", "--"].map(str::to_owned);
                running.exec(apt(config, &[&arguments, packages.as_slice()].concat())).await
            }
            Step::PipInstall { packages } => running.exec(pip(config, packages)).await,
            Step::Run { commands } => {
                let shell = match self.shell {
                    Some(shell) => shell,
                    None => *self.shell.insert(running.find_shell().await?),
                };
                let start = as_user(config, shell, vec!["-c".to_owned(), commands.join(" && ")]);
                running.exec(start).await
            }
            Step::Workdir { path } => running.mkdir(path, "&owner=user").await,
            Step::AddFile { path, content } => running.write(path, content.clone()).await,
            Step::AddDir { path, files } => running.write_all(path, files).await,
            Step::Env { .. } => Ok(()),
        }
    }
}

fn as_user(config: &Config, cmd: &str, args: Vec<String>) -> ExecStart {
    ExecStart {
        cmd: cmd.to_owned(),
        args,
        envs: config.envs.clone(),
        cwd: config.workdir.clone(),
        shell: ShellUse::WhenNeeded,
        // The log of a build is kept here. What the sandbox kept of it would be in the layer.
        unkept: true,
        ..ExecStart::default()
    }
}

fn as_root(config: &Config, cmd: &str, args: Vec<String>, envs: &[(&str, &str)]) -> ExecStart {
    let mut start = ExecStart { as_root: true, ..as_user(config, cmd, args) };
    for (name, value) in envs {
        start.envs.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
    }
    start
}

fn apt(config: &Config, args: &[String]) -> ExecStart {
    as_root(config, "apt-get", args.to_vec(), &[("DEBIAN_FRONTEND", "noninteractive")])
}

/// Settings of pip go by way of variables, which versions that do not know them pass over.
fn pip(config: &Config, packages: &[String]) -> ExecStart {
    let arguments = ["-m", "pip", "install", "--"].map(str::to_owned);
    let settings = [
        ("PIP_ROOT_USER_ACTION", "ignore"),
        // Debian's own images mark their Python as not to be installed into. The machine is the image's own.
        ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_NO_CACHE_DIR", "1"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ];
    as_root(config, "python3", [&arguments, packages].concat(), &settings)
}

// === impl Running ===

impl Running<'_> {
    /// What a step names and is not there, or is in its way, is a fault of the image: the route that it was sent to is there.
    fn failed(&self, error: Error) -> Error {
        let message = format!("step {} ({}) failed: {}", self.index, self.kind, error.message);
        let error = from_node(error);
        let kind = match error.kind {
            ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Forbidden => ErrorKind::Invalid,
            ErrorKind::Gone => ErrorKind::SandboxFailed,
            kind => kind,
        };
        Error { message, kind, ..error }
    }

    /// A program that came to no good end, or other work that took too long.
    fn ended(&self, code: i32, told: &str) -> Error {
        Error::invalid(format!("step {} ({}) failed (exit {code}): {told}", self.index, self.kind))
    }

    fn timed_out(&self) -> String {
        let message = format!("it did not end within {} s, which is what a step may take", STEP.as_secs());
        self.log.say(self.index + 1, self.kind, message.clone());
        message
    }

    /// Runs a program to its end and tells what it says.
    async fn exec(&self, mut start: ExecStart) -> Result<(), Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        start.timeout_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1));
        let mut said = Said::default();
        let ran = tokio::time::timeout(left + GRACE, self.exec_now(&start, &mut said)).await;
        match ran {
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) | Ok(Ok(Exit { reason: ExitReason::TimedOut, .. })) => {
                Err(self.ended(-1, &said.told(&start, Some(&self.timed_out()))))
            }
            Ok(Ok(Exit { code: 0, .. })) => Ok(()),
            Ok(Ok(Exit { code, .. })) => Err(self.ended(code, &said.told(&start, None))),
        }
    }

    async fn exec_now(&self, start: &ExecStart, said: &mut Said) -> Result<Exit, Error> {
        let json = serde_json::to_vec(start)
            .map_err(|error| Error::internal(format!("could not encode a command: {error}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer =
            self.app.node.guest(self.site, Method::POST, "exec/run", headers, Body::from(json)).await?;
        let mut output = OutputStream::new(answer.into_body());
        output.started().await?;
        let (mut stdout, mut stderr) = (Lines::default(), Lines::default());
        let say = |said: &mut Said, line: String| {
            said.line(&line);
            self.log.say(self.index + 1, self.kind, line);
        };
        loop {
            match output.next().await? {
                Frame::Stdout(bytes) => {
                    said.output(&bytes);
                    stdout.push(&bytes, |line| say(said, line));
                }
                Frame::Stderr(bytes) => {
                    said.error(&bytes);
                    stderr.push(&bytes, |line| say(said, line));
                }
                Frame::Exit(exit) => {
                    stdout.finish(|line| say(said, line));
                    stderr.finish(|line| say(said, line));
                    return Ok(exit);
                }
                Frame::Stdin(_)
                | Frame::ReplayEnd
                | Frame::StdinEnd
                | Frame::Started { .. }
                | Frame::InputTaken(_) => {}
            }
        }
    }

    /// The shell for commands: bash where there is one.
    async fn find_shell(&self) -> Result<&'static str, Error> {
        for shell in SHELLS {
            match self.stat(shell).await {
                Ok(_) => return Ok(shell),
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok("/bin/sh")
    }

    async fn stat(&self, path: &str) -> Result<Stat, Error> {
        let path = format!("files/stat?path={}", query_value(path));
        self.app.node.guest_json(self.site, Method::GET, &path, None::<&()>).await
    }

    async fn mkdir(&self, path: &str, more: &str) -> Result<(), Error> {
        let path = format!("files/mkdir?path={}{more}", query_value(path));
        self.within(self.app.node.guest(self.site, Method::POST, &path, HeaderMap::new(), Body::empty()))
            .await
    }

    async fn write(&self, path: &str, content: Bytes) -> Result<(), Error> {
        let path = format!("files?path={}&mode={FILE_MODE}", query_value(path));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.len()));
        self.within(self.app.node.guest(self.site, Method::PUT, &path, headers, Body::from(content))).await
    }

    async fn write_all(&self, path: &str, files: &[DirFile]) -> Result<(), Error> {
        self.mkdir(path, "").await?;
        for file in files {
            let path = format!("{}/{}", path.trim_end_matches('/'), file.relative_path);
            self.write(&path, file.content.clone()).await?;
        }
        Ok(())
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<(), Error> {
        match tokio::time::timeout_at(self.deadline, call).await {
            Ok(done) => done.map(drop).map_err(|error| self.failed(error)),
            Err(_) => Err(self.ended(-1, &self.timed_out())),
        }
    }
}
