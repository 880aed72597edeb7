//! What processes use, as the kernel counts it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// A set of processes, what they hold and what they have used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) processes: usize,
    /// Memory in bytes, shared pages counted by their share.
    pub(crate) memory: u64,
    pub(crate) cpu: Duration,
}

/// All processes, each with its parent.
pub(crate) struct Table {
    parents: BTreeMap<u32, u32>,
}

// === impl Table ===

impl Table {
    pub(crate) fn read() -> Self {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self { parents: pids.filter_map(|pid| Some((pid, parent(pid)?))).collect() }
    }

    /// These processes with all their descendants, and those whose command line names `folder`: a daemon's helpers
    /// often leave its family.
    pub(crate) fn family(&self, roots: &[u32], folder: Option<&Path>) -> BTreeSet<u32> {
        let mut family: BTreeSet<u32> = roots.iter().copied().collect();
        let ours = std::process::id();
        if let Some(folder) = folder.and_then(Path::to_str) {
            family.extend(self.parents.keys().filter(|pid| names(**pid, folder)));
        }
        loop {
            let more: Vec<u32> = self
                .parents
                .iter()
                .filter(|(pid, parent)| family.contains(parent) && !family.contains(pid))
                .map(|(pid, _)| *pid)
                .collect();
            if more.is_empty() {
                break;
            }
            family.extend(more);
        }
        // The benchmark names the folder too.
        family.remove(&ours);
        family
    }

    /// Processes in a control group whose path has one of these ids in it.
    pub(crate) fn inside(&self, ids: &[String]) -> BTreeSet<u32> {
        self.parents
            .keys()
            .copied()
            .filter(|pid| {
                let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                ids.iter().any(|id| groups.contains(id.as_str()))
            })
            .collect()
    }
}

/// Adds up what these processes use now; one that has ended meanwhile counts as nothing.
pub(crate) fn usage(pids: &BTreeSet<u32>) -> Usage {
    let mut sum = Usage::default();
    for pid in pids {
        let Some(memory) = proportional(*pid) else { continue };
        sum.processes += 1;
        sum.memory += memory;
        sum.cpu += cpu(*pid);
    }
    sum
}

/// A field of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(field: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, field)
}

/// Largest resident size since [`reset_peak`], in bytes.
pub(crate) fn peak(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmHWM")
}

pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmRSS")
}

/// Makes the largest resident size the present one.
pub(crate) fn reset_peak(pid: u32) -> anyhow::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
        .with_context(|| format!("could not reset the memory peak of process {pid}"))
}

fn status(pid: u32, field: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let text = text.with_context(|| format!("the server (process {pid}) cannot be looked at"))?;
    let value = kilobytes(&text, field);
    ensure!(value.is_some(), "process {pid} has no {field}");
    Ok(value.unwrap_or_default())
}

fn proportional(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    // A kernel thread has an empty one.
    kilobytes(&text, "Pss")
}

/// CPU time of all threads, from the scheduler's own count: clock ticks are too coarse for processes that idle.
fn cpu(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum();
    Duration::from_nanos(nanoseconds)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, brackets too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn names(pid: u32, folder: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(folder)
}

fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|value| value << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_by_family_and_by_name_with_its_memory() {
        let folder = tempfile::tempdir().unwrap();
        let followed = folder.path().join("followed");
        std::fs::write(&followed, "").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut named = std::process::Command::new("tail").arg("-f").arg(&followed).spawn().unwrap();
        // A command line is filled in a moment after the program has begun.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !names(named.id(), folder.path().to_str().unwrap()) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let table = Table::read();
        let family = table.family(&[std::process::id()], None);
        assert!(family.contains(&child.id()) && family.contains(&named.id()));
        assert_eq!(table.family(&[], Some(folder.path())), BTreeSet::from([named.id()]));
        let used = usage(&BTreeSet::from([child.id()]));
        assert!(used.processes == 1 && used.memory > 10_000, "{used:?}");
        for child in [&mut child, &mut named] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(usage(&BTreeSet::from([child.id()])).processes == 0);
    }
}
