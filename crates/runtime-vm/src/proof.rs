//! Whether machines run here, and with what: proved by booting one.
//!
//! A device node that opens proves nothing: there are hosts whose KVM runs a few instructions and then hangs. So a guest is
//! booted under KVM with a deadline, once; what came of it is remembered for as long as the host's kernel, QEMU and the
//! guest's kernel stay the same.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use warren_runtime::Launcher;
use warren_runtime::process::Watched;

use crate::machine::{Complaints, Machine};
use crate::plan::{self, Launch};

/// A KVM that works boots a guest in well under a second.
pub const KVM_DEADLINE: Duration = Duration::from_secs(8);
/// Emulation on a busy host.
pub const EMULATION_DEADLINE: Duration = Duration::from_secs(90);
const END_DEADLINE: Duration = Duration::from_secs(10);

/// What a trial has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What it holds for; a trial under other circumstances has to be made anew.
    pub circumstances: String,
    /// How long the boot took, in milliseconds, or why there was none.
    pub outcome: Result<u64, String>,
}

/// Boots the machine of `launch` and ends it again. Its cgroup is left for the caller to remove.
pub async fn boot(
    launcher: &Launcher,
    launch: &Launch,
    network_namespace: BorrowedFd<'_>,
    deadline: Duration,
) -> Result<Duration, String> {
    let started = Instant::now();
    let complaints = Complaints::new().map_err(|error| error.to_string())?;
    let launched = plan::launch(launcher, launch, network_namespace, complaints.descriptor(), None)
        .await
        .map_err(|error| error.to_string())?;
    let ended = Watched::new(launched.pid);
    let up = async {
        let mut machine = Machine::connect(&launch.run_dir).await?;
        machine.up(deadline.saturating_sub(started.elapsed())).await
    };
    // A host that hangs does not even answer.
    let outcome = match tokio::time::timeout(deadline, up).await {
        Ok(Ok(())) => Ok(started.elapsed()),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("nothing was heard of it for {} s", deadline.as_secs())),
    };
    let said = complaints.read();
    if let Some(pid) = rustix::process::Pid::from_raw(launched.pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    if let Ok(ended) = ended {
        let _ = tokio::time::timeout(END_DEADLINE, ended.ended()).await;
    }
    outcome.map_err(|error| if said.is_empty() { error } else { format!("{error}; QEMU said: {said}") })
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// What a proof depends on: both kernels and QEMU.
#[must_use]
pub fn circumstances(emulator_digest: &str, kernel_package: &str) -> String {
    let host = rustix::system::uname();
    let (release, version) = (host.release().to_string_lossy(), host.version().to_string_lossy());
    format!("host {release} {version}, QEMU {emulator_digest}, guest {kernel_package}")
}

/// The proof kept in `file`, if it holds for these circumstances.
#[must_use]
pub fn recall(file: &Path, circumstances: &str) -> Option<Proof> {
    let proof: Proof = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (proof.circumstances == circumstances).then_some(proof)
}

pub fn remember(file: &Path, proof: &Proof) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    fs::write(&unfinished, serde_json::to_vec_pretty(proof)?)?;
    fs::rename(unfinished, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_only_where_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kvm.json");
        assert_eq!(recall(&file, "here"), None);
        let proof = Proof { circumstances: "here".into(), outcome: Err("it hung".into()) };
        remember(&file, &proof).unwrap();
        assert_eq!(recall(&file, "here"), Some(proof));
        assert_eq!(recall(&file, "there"), None);
        fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file, "here"), None);
    }
}
