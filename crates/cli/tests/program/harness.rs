//! Runs `warren` with nothing of the tester's environment, and never for longer than a deadline.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::Server;

const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const KEY: &str = "osb_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub(crate) const ID: &str = "sb-0123abcd";

/// A run that has ended, and all it printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A home directory of its own, and how `warren` runs in it.
pub(crate) struct Home {
    pub(crate) folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// With the server's address and a key in the environment.
    pub(crate) fn of(server: &Server) -> Self {
        Self::new().with("OPENCOMPUTER_API_URL", &server.url()).with("OPENCOMPUTER_API_KEY", KEY)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
        command.args(args).env_clear().env("HOME", self.path()).current_dir(self.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args).spawn().unwrap())
    }

    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A program that does not want its input is what some tests are about.
            let _ = stdin.write_all(&input);
        });
        let ran = finish(child);
        writer.join().unwrap();
        ran
    }
}

/// Waits for a program to end.
pub(crate) fn finish(mut child: Child) -> Ran {
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let mut status = None;
    until("the program to end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let text = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader.map_or(String::new(), |reader| String::from_utf8_lossy(&reader.join().unwrap()).into_owned())
    };
    Ran { code: status.unwrap().code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for something to become true.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn send_signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
