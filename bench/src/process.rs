//! What processes use, as the kernel counts it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// CPU time of each thread of some processes, from the scheduler's own count: clock ticks are too coarse for what idles.
pub(crate) struct Threads {
    nanoseconds: BTreeMap<u32, u64>,
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

// === impl Threads ===

impl Threads {
    pub(crate) fn read(pids: &BTreeSet<u32>) -> Self {
        let folders = pids.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
        let time = |thread: std::fs::DirEntry| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, text.split(' ').next()?.parse().ok()?))
        };
        Self { nanoseconds: folders.flatten().flatten().filter_map(time).collect() }
    }

    /// Time spent since `before`. A thread that has ended takes its last bit with it, and never what others spent.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let spent = |(thread, time): (&u32, &u64)| {
            time.saturating_sub(before.nanoseconds.get(thread).copied().unwrap_or(0))
        };
        Duration::from_nanos(self.nanoseconds.iter().map(spent).sum())
    }
}

/// Memory of these processes in bytes, shared pages counted by their share. One that has ended meanwhile has none.
pub(crate) fn memory(pids: &BTreeSet<u32>) -> u64 {
    pids.iter().filter_map(|pid| proportional(*pid)).sum()
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
        // What it holds comes in by and by as it begins to run.
        let held = || memory(&BTreeSet::from([child.id()])) > 10_000;
        while !held() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(held());
        for child in [&mut child, &mut named] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(memory(&BTreeSet::from([child.id()])), 0);
    }

    #[test]
    fn a_thread_that_ends_does_not_hide_what_the_others_spend() {
        fn work(at_least: Duration) {
            let begun = std::time::Instant::now();
            while begun.elapsed() < at_least {
                std::hint::black_box(0);
            }
        }
        let ours = BTreeSet::from([std::process::id()]);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::spawn(move || {
            work(Duration::from_millis(300));
            ready.send(()).unwrap();
            let _ = stopped.recv();
        });
        is_ready.recv().unwrap();
        let before = Threads::read(&ours);
        drop(stop);
        busy.join().unwrap();
        // Wall time: other work may take the core away, but not for all of it.
        let begun = std::time::Instant::now();
        while Threads::read(&ours).since(&before) < Duration::from_millis(5) {
            work(Duration::from_millis(5));
            assert!(begun.elapsed() < Duration::from_secs(20), "what this thread spends is not counted");
        }
        assert!(Threads::read(&ours).since(&before) < Duration::from_secs(20));
    }
}
