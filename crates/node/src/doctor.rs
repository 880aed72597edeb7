//! Whether this machine can run sandboxes, found out by doing each thing once.
//!
//! Every check does what the server will do later, in a throw-away way: in namespaces that end with the check, in
//! a scratch folder, in cgroups that are removed. None looks at version numbers or device nodes where it could try.
//! Each has a deadline, so that a machine that hangs is reported rather than waited for. Nothing is changed for good.

mod cgroups;
mod host;
mod idmap;
mod kernel;
mod machines;
mod sys;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// Sandboxes run, but something is missing or short.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
    /// A command or a sentence that mends it.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, fix: &str) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), fix: Some(fix.to_owned()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, fix: &str) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), fix: Some(fix.to_owned()) }
    }

    /// `Ok` with what was seen, or `Fail` with what went wrong.
    fn of<E: std::fmt::Display>(name: &'static str, tried: Result<String, E>, fix: &str) -> Self {
        match tried {
            Ok(detail) => Self::ok(name, detail),
            Err(error) => Self::fail(name, error.to_string(), fix),
        }
    }
}

/// Runs all checks. `data_dir` need not exist; it is not written to, only beside it where it would be made.
pub async fn run(data_dir: &Path) -> Vec<Check> {
    let mut checks = vec![host::root(), host::kernel_version()];
    checks.extend([host::disk_space(data_dir), host::memory(), host::template()]);
    if checks[0].status == Status::Fail {
        // Everything else needs root to be tried; without it an answer would be a guess.
        return checks;
    }
    let scratch = match Scratch::create(data_dir) {
        Ok(scratch) => scratch,
        Err(error) => {
            let fix = "choose a data directory on a writable file system with --data-dir";
            checks.push(Check::fail("data directory", format!("nothing can be written there: {error}"), fix));
            return checks;
        }
    };
    let folder = scratch.0.as_path();
    checks.push(within("namespaces", kernel::namespaces()).await);
    checks.push(within("loop and ext4", kernel::ext4(folder)).await);
    checks.push(within("reflinks", kernel::reflinks(folder)).await);
    checks.push(within("id-mapped overlay", idmap::check(folder)).await);
    checks.push(within("cgroup tree", cgroups::tree()).await);
    checks.push(within("cgroup limits", cgroups::limits()).await);
    checks.push(within("cgroup kill", cgroups::kill()).await);
    checks.push(within("firewall", kernel::firewall()).await);
    checks.push(within("network links", kernel::links()).await);
    checks.push(within("lxcfs", kernel::lxcfs(folder, data_dir)).await);
    checks.extend(machines::checks().await);
    checks
}

async fn within(name: &'static str, check: impl Future<Output = Check>) -> Check {
    let hangs = "see `dmesg` for a process that is stuck in the kernel; a restart of the machine clears it";
    tokio::time::timeout(DEADLINE, check)
        .await
        .unwrap_or_else(|_| Check::fail(name, format!("no answer within {} s", DEADLINE.as_secs()), hangs))
}

/// A folder on the file system the data directory is, or will be, on. Removed when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn create(data_dir: &Path) -> std::io::Result<Self> {
        let path = host::existing(data_dir).join(format!(".warren-doctor-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove the folder of the checks");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn checks_leave_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let before = mounts();
        let checks = run(&parent.path().join("not/there")).await;
        for check in &checks {
            assert!((check.status == Status::Ok) == check.fix.is_none(), "{check:?}");
            assert!(!check.detail.is_empty(), "{check:?}");
        }
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        assert_eq!(mounts(), before);
    }
}
