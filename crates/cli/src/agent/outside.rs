//! An agent that runs on the user's machine and has only its hands in a sandbox.
//!
//! ```text
//!   agent (here, no tools of its own) ──stdio──▶ warren mcp --sandbox ID ──HTTP──▶ the sandbox
//!      │ in an empty folder, with an empty home
//!      └──▶ its provider, with the user's own key or login
//! ```
//!
//! The agent's own tools are switched off; those of the sandbox stand in. It starts in a folder that was made for it and goes when it
//! ends, with a home in it: so neither the user's files nor their settings, instructions and MCP servers are before it. That is the
//! agent's own obedience, seen with the versions that were tried (docs/agents.md); what must not depend on it runs inside.

mod child;
mod claude_code;
mod codex;
pub(crate) mod keeper;
mod logins;
mod open_code;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use warren_types::SandboxId;

use super::kinds::{Kind, Task};
use super::launch::Lines;
use crate::config::{ENV_API_KEY, ENV_API_URL};
use crate::context::Context;
use crate::failure::hinted;
use crate::output::Output;

/// What the agent calls the tools' server.
const SERVER: &str = "warren";
/// Of a call of a tool.
const CALL_SECONDS: u32 = 3600;

/// Of an API key; what else the server takes is a sandbox's own token.
const KEY_PREFIX: &str = "osb_";
/// Of the name of an agent's folder here.
const PREFIX: &str = "warren-agent-";
const LOCK: &str = "lock";

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outside<'a> {
    pub(crate) kind: Kind,
    /// The sandbox it works in.
    pub(crate) sandbox: &'a SandboxId,
    /// Where the work is in it.
    pub(crate) folder: &'a str,
    pub(crate) task: Task<'a>,
    pub(crate) timeout: Option<Duration>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    /// As a shell would say it; 124 when its time was up.
    pub(crate) code: u8,
    pub(crate) totals: super::kinds::transcript::Totals,
}

/// A program that is about to be started.
#[derive(Debug, Default)]
struct Plan {
    arguments: Vec<String>,
    envs: BTreeMap<String, OsString>,
    lines: Lines,
}

/// The folder that is made for one run. Its lock is held as long as the run lasts.
struct Scratch {
    folder: tempfile::TempDir,
    _lock: File,
}

/// An agent that can be started.
pub(crate) struct Ready<'a> {
    outside: &'a Outside<'a>,
    program: PathBuf,
    plan: Plan,
    scratch: Scratch,
}

/// What an agent is told of where it is.
struct Place<'a> {
    outside: &'a Outside<'a>,
    scratch: &'a Scratch,
    /// Program, arguments and variables of the tools' server.
    tools: Tools,
}

struct Tools {
    program: String,
    arguments: Vec<String>,
    envs: BTreeMap<String, String>,
}

/// Makes what the agent needs here; nothing is done yet.
pub(crate) async fn ready<'a>(context: &Context, outside: &'a Outside<'a>) -> anyhow::Result<Ready<'a>> {
    let program = find_program(outside.kind)?;
    sweep();
    let scratch = Scratch::make()?;
    let place = Place { outside, scratch: &scratch, tools: Tools::of(context, outside.sandbox).await? };
    let mut plan = match outside.kind {
        Kind::ClaudeCode => claude_code::plan(&place)?,
        Kind::Codex => codex::plan(&place)?,
        Kind::OpenCode => open_code::plan(&place)?,
    };
    plan.arguments.extend(outside.task.arguments.iter().cloned());
    plan.envs.extend(kept_variables());
    for (name, folder) in [("HOME", "home"), ("TMPDIR", "tmp")] {
        plan.envs.insert(name.to_owned(), scratch.path(folder).into());
    }
    Ok(Ready { outside, program, plan, scratch })
}

impl Ready<'_> {
    /// Runs the agent to its end, with our standard streams. Whatever ends this ends the agent and all it started.
    pub(crate) async fn work(self, output: Output) -> anyhow::Result<Ended> {
        child::run(output, &self.program, self.plan, &self.scratch, self.outside).await
    }
}

/// What an agent reads before its task.
fn instructions(outside: &Outside<'_>) -> String {
    format!(
        "You work in a sandbox, a Linux machine of your own, through the tools of the MCP server `{SERVER}`: sandbox_exec runs commands, \
         sandbox_read_file, sandbox_write_file, sandbox_edit_file, sandbox_list_files and sandbox_search_code work with its files. The \
         project is in {} there: give full paths, and that folder as cwd of commands. The folder you were started in is empty and \
         nothing there is of use; there are no other tools.",
        outside.folder
    )
}

// === impl Scratch ===

impl Scratch {
    fn make() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("could not make a folder for the agent")?;
        let lock =
            File::create_new(folder.path().join(LOCK)).context("could not make a folder for the agent")?;
        lock.lock_shared().context("could not lock the agent's folder")?;
        let made = Self { folder, _lock: lock };
        for name in ["home", "tmp", "work"] {
            std::fs::create_dir(made.path(name)).context("could not make a folder for the agent")?;
        }
        Ok(made)
    }

    /// By its name.
    fn is_one(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that nobody else may read: it may have a key in it.
    fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        let write = || {
            if let Some(above) = path.parent() {
                std::fs::create_dir_all(above)?;
            }
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(content.as_bytes())
        };
        write().with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }
}

/// Removes folders whose runs were cut off, as by a loss of power: they have keys in them.
fn sweep() {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| Scratch::is_one(path)) {
        // One that is just being made has none yet.
        if File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

// === impl Tools ===

impl Tools {
    async fn of(context: &Context, sandbox: &SandboxId) -> anyhow::Result<Self> {
        let config = context.config()?;
        let program = std::env::current_exe().context("could not find this program's own file")?;
        let envs = [
            (ENV_API_URL.to_owned(), config.api_url.value),
            (ENV_API_KEY.to_owned(), token_of(context, sandbox).await?),
        ];
        Ok(Self {
            program: program.to_string_lossy().into_owned(),
            arguments: ["mcp", "--sandbox", sandbox.as_str()].map(str::to_owned).into(),
            envs: envs.into(),
        })
    }

    /// As most agents take it.
    fn as_json(&self) -> Value {
        json!({ "command": self.program, "args": self.arguments, "env": self.envs })
    }
}

/// What opens this sandbox and nothing else: an agent has no use for the key of everything.
async fn token_of(context: &Context, sandbox: &SandboxId) -> anyhow::Result<String> {
    if let Some(token) = context.config()?.api_key.filter(|key| !key.value.expose().starts_with(KEY_PREFIX)) {
        return Ok(token.value.expose().clone());
    }
    let view = context.client()?.get_sandbox(sandbox).await?.value;
    view.token.with_context(|| format!("the server gave no token for the sandbox {sandbox}"))
}

/// The agent must be installed here; nothing of it is ours to bring.
fn find_program(kind: Kind) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let found = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(kind.program()));
    found.into_iter().find(is_program).ok_or_else(|| {
        let package = match kind {
            Kind::ClaudeCode => "@anthropic-ai/claude-code",
            Kind::Codex | Kind::OpenCode => kind.package(),
        };
        hinted(
            format!("there is no {} on this machine", kind.program()),
            format!(
                "install it (npm install -g {package}), or leave --outside out and it runs in the sandbox"
            ),
        )
    })
}

/// What an agent needs of our environment: how to show itself and how to reach the network. No more, for variables hold keys.
fn kept_variables() -> impl Iterator<Item = (String, OsString)> {
    const KEPT: [&str; 22] = [
        "PATH",
        "TERM",
        "COLORTERM",
        "TERM_PROGRAM",
        "NO_COLOR",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "USER",
        "LOGNAME",
        "SHELL",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NODE_EXTRA_CA_CERTS",
    ];
    KEPT.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var_os(name)?)))
}

/// Of the environment, when they are set.
fn variables(names: &[&str]) -> impl Iterator<Item = (String, OsString)> {
    names.iter().filter_map(|name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        Some(((*name).to_owned(), value))
    })
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// A small file of the user's, if it is there.
fn read_json(path: &Path) -> Option<Value> {
    const MOST: u64 = 1 << 20;
    let is_small = std::fs::metadata(path).ok()?.len() <= MOST;
    let text = is_small.then(|| std::fs::read_to_string(path).ok()).flatten()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests;
