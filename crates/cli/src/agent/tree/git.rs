//! What of a repository goes in: enough to read history, to diff and to commit.
//!
//! Hooks stay here, and so does every setting that runs a program or holds a credential: the configuration is written anew, see
//! [`git_config`].

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::git_config;
use super::root::Root;

/// The largest configuration that is read.
const MAX_CONFIG: u64 = 256 * 1024;
/// Git is not waited for longer: it hangs on what is a pipe where it looks for a file.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether a file below `.git` goes in; `name` is relative to that folder.
pub(super) fn goes_in(name: &str) -> bool {
    if name.ends_with(".lock") {
        return false;
    }
    match name.split_once('/') {
        None => {
            matches!(
                name,
                "HEAD"
                    | "ORIG_HEAD"
                    | "packed-refs"
                    | "shallow"
                    | "index"
                    | "refs"
                    | "reftable"
                    | "objects"
                    | "info"
            ) || name.starts_with("sharedindex.")
        }
        Some(("refs" | "reftable", _)) => true,
        Some(("objects", rest)) => {
            !matches!(rest, "info/alternates" | "info/http-alternates") && !rest.contains("tmp_obj_")
        }
        Some(("info", rest)) => matches!(rest, "exclude" | "sparse-checkout" | "attributes"),
        Some(_) => false,
    }
}

/// The configuration of a repository without what must not go in.
pub(super) fn config(git: &Path) -> String {
    // Never waits: what is no file is as good as none.
    let text = Root::open(git).and_then(|git| git.read("config", MAX_CONFIG)).unwrap_or_default();
    git_config::cleaned(&String::from_utf8_lossy(&text))
}

/// Files that are tracked although a rule ignores them, or why that is not known. Nothing of the repository's settings is run, so it may be
/// another user's.
pub(super) fn tracked_but_ignored(folder: &Path) -> Result<Vec<String>, String> {
    let mut command = Command::new("git");
    command
        .args(["-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", "-C"])
        .arg(folder)
        .args(["ls-files", "--cached", "--ignored", "--exclude-standard", "-z"])
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Without git there is nothing to know.
    let Ok(child) = command.spawn() else { return Ok(Vec::new()) };
    let output = within(PATIENCE, child)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().next().unwrap_or("git failed").to_owned());
    }
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect())
}

/// The output of a program that is ended when it takes too long.
fn within(patience: Duration, child: Child) -> Result<Output, String> {
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let (sends, ended) = mpsc::channel();
    let reads = std::thread::spawn(move || sends.send(child.wait_with_output()));
    let output = ended.recv_timeout(patience).map_err(|_| {
        // Nobody has waited for it yet, so the number is still its own.
        if let Some(id) = id {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
        format!("git did not answer within {} s", patience.as_secs())
    })?;
    let _ = reads.join();
    output.map_err(|error| format!("git: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_logs_and_other_repositories_stay_here() {
        for name in
            ["HEAD", "index", "refs/heads/main", "objects/ab/cd", "objects/pack/x.pack", "info/exclude"]
        {
            assert!(goes_in(name), "{name}");
        }
        for name in [
            "hooks",
            "hooks/pre-commit",
            "config",
            "config.worktree",
            "logs/HEAD",
            "FETCH_HEAD",
            "modules/x/config",
            "index.lock",
            "objects/info/alternates",
            "objects/info/http-alternates",
        ] {
            assert!(!goes_in(name), "{name}");
        }
    }
}
