//! Whether machines run here, and with what: proved by booting one.
//!
//! A device node that opens proves nothing: there are hosts whose KVM runs a few instructions and then hangs, and a guest that
//! boots proves nothing of one that is restored, as almost all of them are. So a guest is booted under KVM, stopped, and gone
//! on with in another QEMU, each with a deadline, once; its agent has to answer both times. What came of it is remembered for as
//! long as the host's kernel, QEMU and the guest's kernel stay the same.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use warren_guest_api::handshake;
use warren_runtime::Launcher;
use warren_runtime::process::Watched;

use crate::machine::{Complaints, Machine, MachineError, state_file};
use crate::plan::{self, AGENT_SOCKET, Launch, Start};

/// Of each of the two starts. A KVM that works boots a guest in well under a second.
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

/// Boots the machine of `launch`, goes on with it from its snapshot in a second QEMU, and ends it; the time that the boot took.
/// Its cgroup is left for the caller to remove.
pub async fn live(
    launcher: &Launcher,
    launch: &Launch,
    network_namespace: BorrowedFd<'_>,
    deadline: Duration,
) -> Result<Duration, String> {
    let started = Instant::now();
    let (took, state) = run(launcher, launch, network_namespace, None, deadline, async |machine| {
        let took = started.elapsed();
        // Not run on: what is in its memory file goes with that state.
        machine.stop().await?;
        let (state, (), _) = machine.snapshot(async || Ok(())).await?;
        Ok((took, state))
    })
    .await?;
    let again = Launch { start: Start::Restore, ..launch.clone() };
    run(launcher, &again, network_namespace, Some(&state), deadline, async |_| Ok(()))
        .await
        .map_err(|error| format!("it booted, and did not go on from its snapshot: {error}"))?;
    Ok(took)
}

/// Starts a machine, does `work` with it once its agent answers, and ends it.
async fn run<T>(
    launcher: &Launcher,
    launch: &Launch,
    network_namespace: BorrowedFd<'_>,
    state: Option<&[u8]>,
    deadline: Duration,
    work: impl AsyncFnOnce(&mut Machine) -> Result<T, MachineError>,
) -> Result<T, String> {
    let complaints = Complaints::new().map_err(|error| error.to_string())?;
    let state = state.map(state_file).transpose().map_err(|error| error.to_string())?;
    let state = state.as_ref().map(AsFd::as_fd);
    let launched = plan::launch(launcher, launch, network_namespace, complaints.descriptor(), state)
        .await
        .map_err(|error| error.to_string())?;
    let ended = Watched::new(launched.pid);
    let worked = async {
        let mut machine = Machine::connect(&launch.run_dir).await.map_err(|error| chain(&error))?;
        machine.up(deadline).await.map_err(|error| chain(&error))?;
        answers(&launch.run_dir).await?;
        work(&mut machine).await.map_err(|error| chain(&error))
    };
    // A host that hangs does not even answer.
    let outcome = tokio::time::timeout(deadline, worked)
        .await
        .unwrap_or_else(|_| Err(format!("it was not there within {} s", deadline.as_secs())));
    let said = complaints.read();
    if let Some(pid) = rustix::process::Pid::from_raw(launched.pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    if let Ok(ended) = ended {
        let _ = tokio::time::timeout(END_DEADLINE, ended.ended()).await;
    }
    outcome.map_err(|error| if said.is_empty() { error } else { format!("{error}; QEMU said: {said}") })
}

/// Agrees with its agent on how to speak, which takes a guest whose clock, interrupts and devices go on.
async fn answers(run_dir: &Path) -> Result<(), String> {
    let silent = |error: &dyn std::error::Error| format!("its agent does not answer: {}", chain(error));
    let folder = File::open(run_dir).map_err(|error| silent(&error))?;
    // Addresses of sockets hold 108 bytes; through the descriptor a path of any length fits.
    let path = format!("/proc/self/fd/{}/{AGENT_SOCKET}", folder.as_raw_fd());
    let mut stream = UnixStream::connect(path).await.map_err(|error| silent(&error))?;
    handshake::connect_port(&mut stream, std::process::id()).await.map(drop).map_err(|error| silent(&error))
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

/// What a proof depends on: both kernels, QEMU, and what was tried.
#[must_use]
pub fn circumstances(emulator_digest: &str, kernel_package: &str) -> String {
    let host = rustix::system::uname();
    let (release, version) = (host.release().to_string_lossy(), host.version().to_string_lossy());
    format!("boot and restore, host {release} {version}, QEMU {emulator_digest}, guest {kernel_package}")
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
