//! Commands: what a request asks for, sessions, kill. One-shot runs are in `run`, results of async ones in
//! `progress`; the log of output itself lives in the sandbox.

pub(crate) mod attach;
mod frames;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod run;
pub(in crate::app) mod watched;

use std::collections::BTreeMap;

use http::Method;
use jiff::Timestamp;
use warren_api::exec::{ExecCreate, ExecKill, ExecSession};
use warren_guest_api::exec::{Exec, ExecStart, Kill, ShellUse};
use warren_types::{Error, ErrorKind, ExecId};

use super::App;
use super::audit::detail::of_command;
use super::audit::{Kind, facts};
use super::auth::Live;

const DEFAULT_TIMEOUT_SECONDS: i64 = 60;
/// Longest time limit of a command: 30 days.
const MAX_TIMEOUT_SECONDS: i64 = 30 * 24 * 60 * 60;
/// The longest string Linux starts a program with.
const MAX_VARIABLE_BYTES: usize = 128 * 1024;
const KILL: i32 = 9;
/// Ends that one listing of a sandbox can tell of.
const MAX_ENDS_SEEN: usize = 1000;
const MAX_SIGNAL: i32 = 64;

/// A one-shot command: a shell reads it, there is no input, and it has a time limit.
pub(crate) fn one_shot(body: ExecCreate) -> Result<ExecStart, Error> {
    let timeout = seconds("timeout", body.timeout)?.unwrap_or(DEFAULT_TIMEOUT_SECONDS.unsigned_abs() * 1000);
    Ok(ExecStart { shell: ShellUse::Always, stdin: false, timeout_ms: Some(timeout), ..checked(body)? })
}

/// A session: run as it is where that is possible, with input, without a time limit unless it has one.
fn session(body: ExecCreate) -> Result<ExecStart, Error> {
    Ok(ExecStart {
        shell: ShellUse::WhenNeeded,
        stdin: true,
        timeout_ms: seconds("timeout", body.timeout)?,
        max_run_after_disconnect_ms: seconds("maxRunAfterDisconnect", body.max_run_after_disconnect)?,
        ..checked(body)?
    })
}

fn checked(body: ExecCreate) -> Result<ExecStart, Error> {
    let Some(cmd) = body.cmd.filter(|cmd| !cmd.is_empty()) else {
        return Err(Error::invalid("cmd is required"));
    };
    let args = body.args.unwrap_or_default();
    let envs = body.envs.unwrap_or_default();
    let cwd = body.cwd.filter(|cwd| !cwd.is_empty());
    if cmd.contains('\0')
        || args.iter().any(|arg| arg.contains('\0'))
        || cwd.as_ref().is_some_and(|cwd| cwd.contains('\0'))
    {
        return Err(Error::invalid("cmd, args and cwd must not contain NUL characters"));
    }
    check_envs(&envs)?;
    Ok(ExecStart { cmd, args, envs, cwd, ..ExecStart::default() })
}

/// Milliseconds; `None` when absent or 0.
fn seconds(field: &str, value: Option<i64>) -> Result<Option<u64>, Error> {
    match value {
        None | Some(0) => Ok(None),
        Some(seconds @ 1..=MAX_TIMEOUT_SECONDS) => Ok(Some(seconds.unsigned_abs() * 1000)),
        Some(_) => Err(Error::invalid(format!("{field} must be 0 to {MAX_TIMEOUT_SECONDS} seconds"))),
    }
}

/// What can stand in an environment.
pub(crate) fn check_envs(envs: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::invalid(format!(
                "envs: the name {name:?} must not be empty or contain = or NUL"
            )));
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!("envs: the value of {name:?} must not contain NUL")));
        }
        // `NAME=value` and the NUL that ends it.
        if name.len() + value.len() + 2 > MAX_VARIABLE_BYTES {
            return Err(Error::invalid(format!(
                "envs: {name:?} and its value may have {} bytes together: no program can be started with more; put it into a file",
                MAX_VARIABLE_BYTES - 2
            )));
        }
    }
    Ok(())
}

pub(crate) fn exec_not_found() -> Error {
    Error::not_found("exec session not found")
}

impl App {
    pub(crate) async fn create_exec(&self, live: &Live, body: ExecCreate) -> Result<ExecSession, Error> {
        let start = session(body)?;
        let note = live.note(Kind::Exec).with_all(of_command(&start)).with("mode", "session");
        let make = async { view(live, self.guest_json(live, Method::POST, "exec", Some(&start)).await?) };
        let told = |made: &ExecSession| facts([("exec", made.session_id.as_str().into())]);
        self.audit.around_with(note, make, told).await
    }

    /// What the sandbox says of its commands. Of those nobody was attached to this is where their end is seen.
    pub(super) async fn known_execs(&self, live: &Live) -> Result<Vec<Exec>, Error> {
        let execs: Vec<Exec> = self.guest_json(live, Method::GET, "exec", None::<&()>).await?;
        for exec in execs.iter().take(MAX_ENDS_SEEN) {
            if let Some(exit) = exec.exit {
                self.audit.exit_of(live, &exec.id).seen(exit.code);
            }
        }
        Ok(execs)
    }

    pub(crate) async fn list_execs(&self, live: &Live) -> Result<Vec<ExecSession>, Error> {
        let execs = self.known_execs(live).await?;
        execs.into_iter().map(|exec| view(live, exec)).collect()
    }

    /// Killing what has ended already is fine.
    pub(crate) async fn kill_exec(&self, live: &Live, exec: &ExecId, body: &ExecKill) -> Result<(), Error> {
        let signal = match body.signal {
            None | Some(0) => KILL,
            Some(signal) => i32::try_from(signal)
                .ok()
                .filter(|signal| (1..=MAX_SIGNAL).contains(signal))
                .ok_or_else(|| Error::invalid(format!("signal must be a number from 1 to {MAX_SIGNAL}")))?,
        };
        let note = live.note(Kind::ExecKill).with("exec", exec.as_str()).with("signal", signal);
        let path = format!("exec/{exec}/kill");
        let kill = Kill { signal };
        self.audit.around(note, self.guest_json::<()>(live, Method::POST, &path, Some(&kill))).await
    }
}

fn view(live: &Live, exec: Exec) -> Result<ExecSession, Error> {
    Ok(ExecSession {
        session_id: exec.id.to_string(),
        sandbox_id: live.id().to_string(),
        command: exec.cmd,
        args: exec.args,
        running: exec.running,
        exit_code: exec.exit.map(|exit| exit.code),
        started_at: timestamp(exec.started_at_ms)?,
        attached_clients: exec.attached_clients,
    })
}

/// A time a guest says; it may say anything.
pub(crate) fn timestamp(ms: u64) -> Result<Timestamp, Error> {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .ok_or_else(|| Error::new(ErrorKind::SandboxFailed, "the sandbox sent a time that cannot be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_no_program_could_be_started_with_is_refused() {
        let of = |bytes: usize| check_envs(&BTreeMap::from([("A".to_owned(), "x".repeat(bytes))]));
        assert!(of(131_069).is_ok());
        assert!(of(131_070).is_err());
    }

    fn body(json: serde_json::Value) -> ExecCreate {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn one_shots_have_a_limit_and_sessions_have_none() {
        let run = |timeout: i64| {
            one_shot(body(serde_json::json!({"cmd": "x", "timeout": timeout}))).map(|s| s.timeout_ms)
        };
        assert_eq!(run(0).unwrap(), Some(60_000));
        assert_eq!(run(1).unwrap(), Some(1000));
        assert_eq!(run(MAX_TIMEOUT_SECONDS).unwrap(), Some(2_592_000_000));
        assert!(run(MAX_TIMEOUT_SECONDS + 1).is_err());
        assert!(run(-1).is_err());
        assert_eq!(session(body(serde_json::json!({"cmd": "x"}))).unwrap().timeout_ms, None);
    }
}
