//! One command: what it is, its process, its output, its input.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;
use warren_guest_api::exec::{Exec, ExecStart, Exit, ShellUse};
use warren_types::error::Result;
use warren_types::{Error, ExecId};

use super::Input;
use super::kept::Kept;
use crate::account::Account;
use crate::cgroup::Cgroups;
use crate::clock::now_ms;
use crate::environment::{Environment, Variables};
use crate::journal::{CommandLog, Journal};
use crate::log::Limits;
use crate::output::Output;
use crate::spawn::{self, Process, Program};
use crate::workers::Workers;

/// What is kept of a command line for listings, in bytes of JSON.
const MAX_SHOWN: usize = 4096;

pub(crate) struct Command {
    pub(crate) id: ExecId,
    shown: (String, Vec<String>),
    started_at_ms: u64,
    ended_at_ms: Cell<Option<u64>>,
    pub(super) timeout: Option<Duration>,
    pub(super) abandon_after: Option<Duration>,
    /// None of one that ended with an earlier agent.
    pub(super) process: Option<Process>,
    pub(crate) output: Rc<Output>,
    pub(crate) input: Input,
}

/// The agent's ends of a command's stdout and stderr.
pub(super) struct Pipes {
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

impl Command {
    /// Starts it. The last argument is about its log: sizes, place of the file, and who does the waiting for it.
    pub(super) async fn launch(
        id: ExecId,
        start: ExecStart,
        environment: &Environment,
        cgroups: &Rc<Cgroups>,
        journal: &Rc<Journal>,
        (limits, log, workers): (Limits, PathBuf, Workers),
    ) -> Result<(Rc<Self>, Pipes)> {
        let account = match (environment.account(), start.as_root) {
            (account, false) => account,
            (account, true) => Arc::new(account.as_root()),
        };
        let mut variables = environment.variables(&account, &start.envs);
        let folder = folder(start.cwd.as_deref(), &account);
        // A program that starts in a link to a folder calls it by the name it was given, as in a shell that went there.
        if let Some(name) = plain(&folder) {
            variables.entry("PWD".to_owned()).or_insert(name);
        }
        let program = program(&start, &variables, &folder)?;
        let no_pipe = |error: io::Error| spawn::no_room(&error, cgroups);
        let (stdout, stdout_writer) = output_pipe().map_err(no_pipe)?;
        let (stderr, stderr_writer) = output_pipe().map_err(no_pipe)?;
        let (stdin, input) =
            if start.stdin { input_pipe().map_err(no_pipe)? } else { (nothing().map_err(no_pipe)?, None) };
        let started_at_ms = now_ms();
        let process = spawn::spawn(
            &program,
            [stdin.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()],
            false,
            &format!("exec-{id}"),
            cgroups,
            environment.login(&account).as_ref(),
        )
        .await?;
        let shown = shown(start.cmd, start.args);
        let logged = (!start.unkept).then(|| CommandLog::new(journal, id.clone(), &shown.0, &shown.1));
        let command = Rc::new(Self {
            id,
            shown,
            started_at_ms,
            ended_at_ms: Cell::new(None),
            timeout: start.timeout_ms.map(Duration::from_millis),
            abandon_after: start.max_run_after_disconnect_ms.map(Duration::from_millis),
            process: Some(process),
            output: Output::new(limits, log, workers, logged),
            input: Input::new(input),
        });
        Ok((command, Pipes { stdout, stderr }))
    }

    /// One that ended with an earlier agent, as that one left it.
    pub(super) fn kept(kept: Kept, (limits, log, workers): (Limits, PathBuf, Workers)) -> Rc<Self> {
        let Kept { exec, output } = kept;
        let command = Rc::new(Self {
            id: exec.id,
            shown: (exec.cmd, exec.args),
            started_at_ms: exec.started_at_ms,
            ended_at_ms: Cell::new(exec.ended_at_ms),
            timeout: None,
            abandon_after: None,
            process: None,
            output: Output::continued(limits, log, workers, exec.log_start),
            input: Input::new(None),
        });
        for (stream, bytes) in output {
            command.output.take_in(stream, bytes);
        }
        if let Some(exit) = exec.exit {
            command.output.finish(exit);
        }
        command
    }

    pub(crate) fn view(&self) -> Exec {
        let exit = self.output.exit();
        Exec {
            id: self.id.clone(),
            cmd: self.shown.0.clone(),
            args: self.shown.1.clone(),
            running: exit.is_none(),
            exit,
            started_at_ms: self.started_at_ms,
            ended_at_ms: self.ended_at_ms.get(),
            attached_clients: self.output.clients(),
            log_start: self.output.start(),
            log_end: self.output.end(),
        }
    }

    /// Sends a signal; a command that has ended takes it without effect.
    pub(crate) fn kill(&self, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::invalid(format!("signal must be from 1 to 64 (got {signal})")));
        }
        match &self.process {
            Some(process) if self.output.exit().is_none() => process.signal(signal),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended, for at most that long.
    pub(crate) async fn wait(&self, most: Duration) {
        let _ = tokio::time::timeout(most, self.output.until(|| self.output.exit())).await;
    }

    pub(super) fn finish(&self, exit: Exit) {
        self.ended_at_ms.set(Some(now_ms()));
        self.input.close();
        self.output.finish(exit);
        if let Some(process) = &self.process {
            process.release();
        }
    }
}

/// The name of a folder as a shell may have it in `PWD`: without `.`, and not by way of `..`, which links would make another.
fn plain(folder: &str) -> Option<String> {
    let folder = Path::new(folder);
    let is_plain = folder.is_absolute() && !folder.components().any(|part| part == Component::ParentDir);
    is_plain.then(|| folder.components().collect::<PathBuf>().to_string_lossy().into_owned())
}

fn folder(cwd: Option<&str>, account: &Account) -> String {
    let home = account.user.home.as_str();
    match cwd {
        None | Some("") => account.start_folder(home).to_owned(),
        Some(cwd) => Path::new(home).join(cwd).to_string_lossy().into_owned(),
    }
}

/// Decides between running `cmd` itself and giving it to a shell.
fn program(start: &ExecStart, variables: &Variables, folder: &str) -> Result<Program> {
    let cmd = start.cmd.as_str();
    let shell = start.args.is_empty()
        && match start.shell {
            ShellUse::Always => true,
            ShellUse::WhenNeeded => {
                has_shell_characters(cmd) && !spawn::names_a_program(cmd, variables, folder)
            }
        };
    if cmd.is_empty() {
        return Err(Error::invalid("cmd is required"));
    }
    let words: Vec<&str> = if shell {
        vec![spawn::SHELL, "-c", cmd]
    } else {
        std::iter::once(cmd).chain(start.args.iter().map(String::as_str)).collect()
    };
    Program::new(&words, None, variables, folder)
}

fn has_shell_characters(cmd: &str) -> bool {
    cmd.contains(|character: char| {
        character.is_whitespace() || "|&;<>()$`\\\"'*?[]#~={}!".contains(character)
    })
}

/// The command line for listings, cut where it gets long.
fn shown(cmd: String, args: Vec<String>) -> (String, Vec<String>) {
    let mut left = MAX_SHOWN;
    let mut cut = |text: String| {
        let mut kept = String::new();
        if left == 0 {
            return "…".to_owned();
        }
        for character in text.chars() {
            // JSON writes control characters as `\u0000`, six bytes.
            let cost = if character.is_control() { 6 } else { character.len_utf8().max(2) };
            if cost > left {
                kept.push('…');
                left = 0;
                return kept;
            }
            left -= cost;
            kept.push(character);
        }
        left = left.saturating_sub(3);
        kept
    };
    let cmd = cut(cmd);
    let mut shown = Vec::new();
    for argument in args {
        let argument = cut(argument);
        shown.push(argument);
        if shown.last().is_some_and(|last| last.ends_with('…')) {
            break;
        }
    }
    (cmd, shown)
}

fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

fn input_pipe() -> io::Result<(OwnedFd, Option<pipe::Sender>)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((reader, Some(pipe::Sender::from_owned_fd(writer)?)))
}

/// The agent's own standard input, which is `/dev/null`: the file of that name may be removed by who is root in the sandbox.
fn nothing() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use warren_guest_api::boot::HOME;

    use super::*;

    #[test]
    fn a_long_command_line_is_shown_cut() {
        let args: Vec<String> = (0..10_000).map(|number| format!("argument {number} \u{1}")).collect();
        let (cmd, shown) = shown("x".to_owned(), args);
        let text = serde_json::to_string(&(cmd, &shown)).unwrap();
        assert!(text.len() < 2 * MAX_SHOWN && text.len() > MAX_SHOWN / 4, "{}", text.len());
        assert!(shown.last().is_some_and(|last| last.ends_with('…')));
        let many_empty = super::shown(String::new(), vec![String::new(); 1_000_000]).1.len();
        assert!(many_empty < MAX_SHOWN, "{many_empty}");
    }

    #[test]
    fn relative_working_directories_are_below_home() {
        let account = Account::default();
        assert_eq!(folder(Some("a/b"), &account), format!("{HOME}/a/b"));
        assert_eq!(folder(Some("/x"), &account), "/x");
        let folder_of_root = folder(Some("a"), &account.as_root());
        assert_eq!(folder_of_root, "/root/a");
    }
}
