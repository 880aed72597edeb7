//! Starts one program in a cgroup of its own, as the sandbox's user, and waits for its end.
//!
//! Used by commands and terminals alike. A start that fails leaves nothing behind and says which part of it was wrong.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use crate::cgroup::{Cgroup, Cgroups};
use crate::environment::{self, Login, Variables, c_string};
use crate::sys::{self, Child, Stage};

/// What reads command lines.
pub(crate) const SHELL: &str = "/bin/sh";
/// Places looked through for a program.
const MAX_CANDIDATES: usize = 1000;

/// What to start, checked.
pub(crate) struct Program {
    /// As the caller wrote it, for messages.
    name: String,
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    folder: CString,
}

/// A running program. Dropping it does not end it.
pub(crate) struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    cgroup: RefCell<Option<Cgroup>>,
    /// From here on its number may belong to another.
    reaped: Cell<bool>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signalled(i32),
    /// Somebody else collected it; nobody knows.
    Unknown,
}

impl Program {
    /// `words` are the program and its arguments; `shown_as` replaces the first one in what the program sees.
    pub(crate) fn new(
        words: &[&str],
        shown_as: Option<&str>,
        variables: &Variables,
        folder: &str,
    ) -> Result<Self> {
        let name = words.first().copied().unwrap_or_default();
        if name.is_empty() {
            return Err(Error::invalid("cmd is required"));
        }
        environment::check_names(variables)?;
        let mut arguments: Vec<CString> =
            words.iter().map(|&word| c_string("the command", word)).collect::<Result<_>>()?;
        if let (Some(shown), Some(first)) = (shown_as, arguments.first_mut()) {
            *first = c_string("the command", shown)?;
        }
        Ok(Self {
            candidates: candidates(name, variables)
                .map(|path| c_string("the command", path))
                .collect::<Result<_>>()?,
            name: name.to_owned(),
            arguments,
            environment: environment::to_strings(variables)?,
            folder: c_string("the working directory", folder)?,
        })
    }

    /// The place at which there is such a program, whether it runs or not.
    fn found(&self) -> Option<String> {
        let folder = Path::new(OsStr::from_bytes(self.folder.to_bytes()));
        let path = |candidate: &CString| folder.join(OsStr::from_bytes(candidate.to_bytes()));
        let found = self.candidates.iter().map(path).find(|path| path.is_file())?;
        Some(format!("{found:?}"))
    }
}

/// Paths at which a program of this name may be, in the order they are tried.
fn candidates(name: &str, variables: &Variables) -> impl Iterator<Item = String> {
    let (direct, search) = if name.contains('/') {
        (Some(name.to_owned()), "")
    } else {
        (None, variables.get("PATH").map_or(warren_guest_api::boot::PATH, String::as_str))
    };
    let searched = search.split(':').filter(|_| direct.is_none()).map(move |folder| match folder {
        "" => format!("./{name}"),
        folder => format!("{folder}/{name}"),
    });
    direct.clone().into_iter().chain(searched).take(MAX_CANDIDATES).collect::<Vec<_>>().into_iter()
}

/// Whether a program of this name could be run from `folder`.
pub(crate) fn names_a_program(name: &str, variables: &Variables, folder: &str) -> bool {
    !name.is_empty()
        && candidates(name, variables).any(|path| {
            std::fs::metadata(Path::new(folder).join(path))
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// Starts a program; returns once it runs. `group` names its cgroup. Without a `login` it is run as who this program is.
pub(crate) async fn spawn(
    program: &Program,
    stdio: [BorrowedFd<'_>; 3],
    terminal: bool,
    group: &str,
    cgroups: &Rc<Cgroups>,
    login: Option<&Login>,
) -> Result<Process> {
    let cgroup = cgroups.create(group).map_err(|error| match error.raw_os_error() {
        Some(libc::EAGAIN) => Error::new(
            ErrorKind::Unavailable,
            "the sandbox has no room for another group of processes; remove some from /sys/fs/cgroup and try again",
        ),
        _ => no_room(&error, cgroups),
    })?;
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|error| no_room(&error.into(), cgroups))?;
    let failure = pipe::Receiver::from_owned_fd(reader).map_err(|error| no_room(&error, cgroups))?;
    let (pid, pidfd) = sys::spawn(&Child {
        stdio,
        terminal,
        identity: login.map(Login::identity),
        folder: &program.folder,
        programs: &program.candidates,
        arguments: &program.arguments,
        environment: &program.environment,
        failure: writer.as_fd(),
        cgroup: cgroup.as_ref().map(|cgroup| cgroup.folder.as_fd()),
    })
    .map_err(|error| no_room(&error, cgroups))?;
    drop(writer);
    let pid =
        Pid::from_raw(pid).ok_or_else(|| Error::internal("the kernel made a process without a number"))?;
    let pidfd = sys::watch(pidfd, Interest::READABLE).map_err(|error| {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        no_room(&error, cgroups)
    })?;
    let process = Process { pid, pidfd, cgroup: RefCell::new(cgroup), reaped: Cell::new(false) };
    match read_failure(&failure).await {
        None => Ok(process),
        Some(report) => {
            process.wait().await;
            let (stage, error) = sys::parse_failure(report);
            Err(explain(program, stage, &error, cgroups))
        }
    }
}

/// `None` once the program runs.
async fn read_failure(pipe: &pipe::Receiver) -> Option<[u8; 5]> {
    let mut report = [0; 5];
    loop {
        pipe.readable().await.ok()?;
        match pipe.try_read(&mut report) {
            // Written at once, so it is there as a whole or not at all.
            Ok(length) => return (length == report.len()).then_some(report),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

fn explain(program: &Program, stage: Stage, error: &io::Error, cgroups: &Cgroups) -> Error {
    let text = describe(error);
    match (stage, error.raw_os_error()) {
        (_, Some(libc::EAGAIN | libc::ENOMEM)) => no_room(error, cgroups),
        (Stage::Folder, Some(libc::ENOENT)) => {
            Error::invalid(format!("working directory {} does not exist", quoted(&program.folder)))
        }
        (Stage::Folder, _) => {
            Error::invalid(format!("working directory {} cannot be used: {text}", quoted(&program.folder)))
        }
        (Stage::Program, Some(libc::ENOENT)) if program.name == SHELL && program.found().is_none() => {
            Error::invalid(format!(
                "this sandbox has no shell ({SHELL}), so a command line cannot be read; give a program and its arguments \
                 instead"
            ))
        }
        (Stage::Program, Some(libc::ENOENT)) if let Some(found) = program.found() => Error::invalid(format!(
            "cannot start {:?}: {found} is there, but not what it needs to run (its interpreter or loader)",
            program.name
        )),
        (Stage::Program, _) => Error::invalid(format!("cannot start {:?}: {text}", program.name)),
        (Stage::Prepare, _) => Error::internal(format!("cannot prepare to start {:?}: {text}", program.name)),
    }
}

fn quoted(path: &CStr) -> String {
    format!("{:?}", OsStr::from_bytes(path.to_bytes()))
}

/// The system's words for an error, without the number.
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Why a process, or what connects it, cannot be made.
pub(crate) fn no_room(error: &io::Error, cgroups: &Cgroups) -> Error {
    let text = match error.raw_os_error() {
        Some(libc::EAGAIN) => match cgroups.process_limit() {
            Some(limit) => format!("the sandbox has no room for another process (its limit is {limit})"),
            None => "the sandbox has no room for another process".to_owned(),
        },
        Some(libc::ENOMEM) => "the sandbox has no memory left for another process".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => {
            "the sandbox has too many files open to start another command".to_owned()
        }
        _ => return Error::internal(format!("cannot make a process: {}", describe(error))),
    };
    Error::new(ErrorKind::Unavailable, format!("{text}; end something that runs in it and try again"))
}

impl Process {
    /// Waits until the program itself has ended; what it started may live on.
    pub(crate) async fn wait(&self) -> Ending {
        loop {
            let Ok(mut ready) = self.pidfd.readable().await else { return Ending::Unknown };
            match rustix::process::waitid(
                WaitId::PidFd(self.pidfd.get_ref().as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {
                Ok(Some(status)) => {
                    self.reaped.set(true);
                    return match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Ending::Exited(code),
                        (None, Some(signal)) => Ending::Signalled(signal),
                        (None, None) => Ending::Unknown,
                    };
                }
                Ok(None) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.reaped.set(true);
                    return Ending::Unknown;
                }
            }
        }
    }

    /// Sends a signal to its process group; 9 goes to everything it has started.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            self.kill_all();
            return Ok(());
        }
        if self.reaped.get() {
            return Ok(());
        }
        match sys::signal_group(self.pid, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::internal(format!("cannot send the signal: {}", describe(&error))))
            }
            _ => Ok(()),
        }
    }

    /// Lets go of the cgroup, which is removed as soon as it is empty. What still runs in it is on its own.
    pub(crate) fn release(&self) {
        self.cgroup.take();
    }

    /// Ends it and everything it has started.
    pub(crate) fn kill_all(&self) {
        let killed = self.cgroup.borrow().as_ref().is_some_and(|cgroup| cgroup.kill().is_ok());
        if !killed && !self.reaped.get() {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_a_shell_does() {
        let path = |path: &str| Variables::from([("PATH".to_owned(), path.to_owned())]);
        let found = |name, variables: &Variables| candidates(name, variables).collect::<Vec<_>>();
        assert_eq!(found("ls", &path("/a:/b:")), ["/a/ls", "/b/ls", "./ls"]);
        assert_eq!(found("./ls", &path("/a")), ["./ls"]);
        assert!(found("ls", &Variables::new()).contains(&"/usr/bin/ls".to_owned()));
        assert!(names_a_program("sh", &path("/bin"), "/"));
        assert!(names_a_program("bin/sh", &path(""), "/"));
        assert!(!names_a_program("echo hi", &path("/bin"), "/"));
        assert!(!names_a_program("/bin", &path("/bin"), "/"));
    }
}
