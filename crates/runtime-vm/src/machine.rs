//! The node's end of one running machine: waiting for its agent, snapshots, the balloon.
//!
//! ```text
//!   Boot ────▶ firmware, kernel, agent opens its port ──┐
//!                                                       ├──▶ ready: the node may connect, and must renew it first
//!   Restore ─▶ device state loaded, running on ─────────┘
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::{Value, json};
use tracing::debug;

use crate::plan::CONTROL_SOCKET;
use crate::qmp::{Qmp, QmpError};

/// Largest device state that is believed; it is a few hundred kilobytes.
const MAX_STATE_BYTES: u64 = 16 << 20;
/// Bytes kept of what QEMU complains about.
const MAX_COMPLAINTS: u64 = 16 * 1024;
/// Largest part of the console that is shown.
const MAX_CONSOLE: usize = 2000;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Of a balloon's way to its size, as long as it moves. A guest whose processors are emulated on a busy host gives back a gigabyte
/// in ten seconds.
const BALLOON_DEADLINE: Duration = Duration::from_secs(50);
/// A balloon that has not moved for so long has come to what the guest needs.
const BALLOON_STUCK: Duration = Duration::from_secs(6);

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("could not {action}")]
    Io { action: &'static str, source: io::Error },
    #[error("the machine was not up within {} s{}", after.as_secs(), said(console))]
    NotUp { after: Duration, console: String },
    #[error("QEMU ended{}", said(complaints))]
    Ended { complaints: String },
    #[error("the device state is {bytes} bytes, which cannot be")]
    AbsurdState { bytes: u64 },
    #[error("the machine could not be stopped or started again: it is {status}")]
    Status { status: String },
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; it said last: {text}") }
}

type Result<T> = std::result::Result<T, MachineError>;

fn trouble(action: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Io { action, source }
}

/// What QEMU writes to its standard error: memory that cannot grow, so that a guest cannot fill anything with it.
pub struct Complaints(File);

impl Complaints {
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("qemu-complaints", flags)?);
        file.set_len(MAX_COMPLAINTS)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
        Ok(Self(file))
    }

    #[must_use]
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What there is so far, in one line.
    #[must_use]
    pub fn read(&self) -> String {
        let mut file = &self.0;
        // The offset is QEMU's as well: how far it has written.
        let written = file.stream_position().unwrap_or(0).min(MAX_COMPLAINTS);
        let mut bytes = vec![0; usize::try_from(written).unwrap_or(0)];
        if rustix::io::pread(file, &mut bytes, 0).is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).trim().replace('\n', "; ")
    }
}

/// A running QEMU.
pub struct Machine {
    qmp: Qmp,
}

impl Machine {
    /// Connects to the QEMU that listens in `run_dir`, newly started or found again.
    pub async fn connect(run_dir: &Path) -> Result<Self> {
        Ok(Self { qmp: Qmp::connect(&run_dir.join(CONTROL_SOCKET)).await? })
    }

    /// Waits until the agent has opened its port. Nobody may connect to the port before: bytes that wait there keep QEMU so
    /// busy that the guest hardly gets on.
    pub async fn up(&mut self, deadline: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            if self.is_running().await? && self.agent_has_opened().await? {
                debug!(ms = started.elapsed().as_millis(), "the machine is up");
                return Ok(());
            }
            if started.elapsed() > deadline {
                let console = self.console().await.unwrap_or_default();
                return Err(MachineError::NotUp { after: deadline, console });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn is_running(&mut self) -> Result<bool> {
        Ok(self.status().await? == "running")
    }

    /// Whether it stands still before a write that its disk has no room for.
    pub async fn has_no_room(&mut self) -> Result<bool> {
        Ok(self.status().await? == "io-error")
    }

    async fn status(&mut self) -> Result<String> {
        let answer = self.qmp.execute("query-status", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or("in no known state").to_owned())
    }

    async fn agent_has_opened(&mut self) -> Result<bool> {
        let answer = self.qmp.execute("query-chardev", json!({})).await?;
        let channels = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(channels.iter().any(|channel| channel["label"] == "agent" && channel["frontend-open"] == true))
    }

    /// The end of what the guest's kernel has said.
    pub async fn console(&mut self) -> Result<String> {
        let arguments = json!({ "device": "console", "size": 65536 });
        let answer = self.qmp.execute("ringbuf-read", arguments).await?;
        let text = answer.as_str().unwrap_or_default().trim();
        let from = text.char_indices().rev().nth(MAX_CONSOLE).map_or(0, |(at, _)| at);
        Ok(text[from..].to_owned())
    }

    /// Stops the machine for as long as `copy` takes, and returns the state of its devices. Memory and disk files hold
    /// still meanwhile and belong to that state: `copy` is to clone them. The machine runs on afterwards, whatever
    /// happened; [`Self::stop`] first if it is not to.
    pub async fn snapshot<T>(
        &mut self,
        copy: impl AsyncFnOnce() -> io::Result<T>,
    ) -> Result<(Vec<u8>, T, Duration)> {
        let was_running = self.is_running().await?;
        let paused = Instant::now();
        if was_running {
            self.stop().await?;
        }
        let stopped = paused.elapsed();
        let taken: Result<(Vec<u8>, T)> = async {
            let state = self.device_state().await?;
            let saved = paused.elapsed();
            let copied = copy().await.map_err(trouble("clone memory and disk"))?;
            let copying = paused.elapsed();
            debug!(?stopped, ?saved, ?copying, "snapshot taken");
            Ok((state, copied))
        }
        .await;
        if was_running {
            self.go_on().await?;
        }
        let (state, copied) = taken?;
        Ok((state, copied, paused.elapsed()))
    }

    /// Stops the machine's CPUs and waits for its disk writes under way.
    pub async fn stop(&mut self) -> Result<()> {
        self.qmp.execute("stop", json!({})).await.map(drop).map_err(Into::into)
    }

    pub async fn go_on(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({})).await.map(drop).map_err(Into::into)
    }

    /// Ends QEMU, with nothing more written by the guest.
    pub async fn quit(&mut self) -> Result<()> {
        self.qmp.execute("quit", json!({})).await.map(drop).map_err(Into::into)
    }

    /// State of everything but memory and disks, of a machine that is stopped.
    ///
    /// QEMU offers it for Xen, where memory is somebody else's business, as it is here. It is the format of its migration
    /// stream, so it is loaded as an incoming one.
    async fn device_state(&mut self) -> Result<Vec<u8>> {
        const SET: u32 = 9;
        let failed = |error| trouble("make a file for the device state")(error);
        let mut kept = state_file(&[]).map_err(failed)?;
        // One that can only be written to: QEMU refuses a descriptor that can do more than it asked for.
        let path = format!("/proc/self/fd/{}", kept.as_raw_fd());
        let writer = OpenOptions::new().write(true).open(path).map_err(failed)?;
        self.qmp.execute_with_descriptor("add-fd", json!({ "fdset-id": SET }), writer.as_fd()).await?;
        drop(writer);
        let file = format!("/dev/fdset/{SET}");
        let arguments = json!({ "filename": file, "live": false });
        let saved = self.qmp.execute("xen-save-devices-state", arguments).await;
        self.qmp.execute("remove-fd", json!({ "fdset-id": SET })).await?;
        saved?;
        read_bounded(&mut kept)
    }

    /// Takes memory from the guest, or gives it back, until it has `memory_mb`; at most what its hardware has. Returns
    /// what it has in the end: a guest that needs its memory gives less.
    pub async fn balloon(&mut self, memory_mb: u32) -> Result<u32> {
        let wanted = u64::from(memory_mb) << 20;
        self.qmp.execute("balloon", json!({ "value": wanted })).await?;
        let started = Instant::now();
        let mut last = (u64::MAX, Instant::now());
        loop {
            let answer = self.qmp.execute("query-balloon", json!({})).await?;
            let actual = answer.get("actual").and_then(Value::as_u64).unwrap_or(0);
            if actual != last.0 {
                last = (actual, Instant::now());
            }
            let stuck = last.1.elapsed() > BALLOON_STUCK;
            if actual == wanted || stuck || started.elapsed() > BALLOON_DEADLINE {
                return Ok(u32::try_from(actual >> 20).unwrap_or(u32::MAX));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn read_bounded(file: &mut File) -> Result<Vec<u8>> {
    let failed = |error| trouble("read the device state")(error);
    let bytes = file.metadata().map_err(failed)?.len();
    if !(1..=MAX_STATE_BYTES).contains(&bytes) {
        return Err(MachineError::AbsurdState { bytes });
    }
    let mut state = Vec::new();
    file.rewind().map_err(failed)?;
    file.take(bytes).read_to_end(&mut state).map_err(failed)?;
    Ok(state)
}

/// A file of that many bytes of nothing, for the memory of a machine that is about to boot.
pub fn make_memory(path: &PathBuf, bytes: u64) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.set_len(bytes)
}

/// A device state to hand to a launch.
pub fn state_file(state: &[u8]) -> io::Result<File> {
    warren_runtime::client::memory_file(state)
}

/// Reads a device state that was kept.
pub fn read_state(path: &Path) -> Result<Vec<u8>> {
    read_bounded(&mut File::open(path).map_err(trouble("open the device state"))?)
}
